// A photograph to the pixels that a network wants: decode, resize, crop. Resizing is Pillow's, bit for
// bit: weights in whole numbers, rows first, rounded to bytes, then columns. Only decoding is the
// browser's own, which may differ from Pillow's by a level here and there.
import {fetchBytes, LabError} from './fetch.js';
import {clip, rint} from './numbers.js';

const MOST_PIXELS = 89478485; // as Pillow has it: what is larger may be meant to fill the memory
const STRIP = 2 ** 19; // pixels that are looked at together
const BITS = 22; // of a weight's fraction

// The bundled example, as the network is given it: {pixels, height, width}.
export async function example(url = new URL('../weights/example.rgb', import.meta.url)) {
  const pixels = new Uint8Array(await fetchBytes(url)), side = Math.sqrt(pixels.length / 3);
  return {pixels, height: side, width: side};
}

// Decode a file, upright. Its colours stay as they are stored.
export async function decode(blob) {
  const image = await createImageBitmap(blob, {colorSpaceConversion: 'none'}).catch(() => {
    throw new LabError('This file is no image that your browser can show: take a JPEG or a PNG.');
  });
  const {width, height} = image;
  if (width * height <= MOST_PIXELS && Math.max(width, height) <= 1000 * Math.min(width, height)) return image;
  image.close();
  throw new LabError(`This image has ${width} x ${height} pixels: make it smaller, and not so long. `
    + 'At most 89 million fit.');
}

// Make of an image what the network wants; `example` is that already. It is read in strips of rows.
export function preprocess(image, {resize, crop, enlarge}) {
  if (image.pixels) return image;
  const {width, height} = image, rows = Math.min(Math.max(1, Math.floor(STRIP / width)), height);
  const context = new OffscreenCanvas(width, rows).getContext('2d', {willReadFrequently: true});
  const long = Math.trunc(resize * Math.max(width, height) / Math.min(width, height));
  const [wide, high] = width <= height ? [resize, long] : [long, resize];
  const across = axis(width, wide, cropOffset(wide, crop), crop);
  let square = new Uint8Array(height * crop * 4);
  for (let top = 0; top < height; top += rows) {
    const count = Math.min(rows, height - top);
    context.fillStyle = 'white'; // paper, under what is transparent
    context.fillRect(0, 0, width, count);
    context.drawImage(image, 0, top, width, count, 0, 0, width, count);
    const strip = context.getImageData(0, 0, width, count).data;
    square.set(resample(strip, count, width, 4, across), top * crop * 4);
  }
  square = resample(square, 1, height, crop * 4, axis(height, high, cropOffset(high, crop), crop));
  const side = enlarge ?? crop;
  if (enlarge) {
    const larger = axis(crop, enlarge, 0, enlarge);
    square = resample(resample(square, crop, crop, 4, larger), 1, crop, enlarge * 4, larger);
  }
  return {pixels: square.filter((_, i) => i % 4 < 3), height: side, width: side};
}

// Where a centred crop begins: below 0 if it is larger than the image. The two cases round as torchvision's.
const cropOffset = (side, crop) => side >= crop ? rint((side - crop) / 2) : -Math.floor((crop - side) / 2);

// For each of `count` places from `offset` on: the first pixel under its triangle, and their weights. The
// triangle is two pixels wide, of the larger of both images. A place outside of the image stays black.
function axis(from, to, offset, count) {
  const scale = from / to, reach = Math.max(scale, 1);
  return Array.from({length: count}, (_, i) => {
    if (i + offset < 0 || i + offset >= to) return {first: 0, weights: []};
    const centre = (i + offset + 0.5) * scale;
    const [first, end] = [centre - reach, centre + reach].map(edge => clip(Math.trunc(edge + 0.5), 0, from));
    const heights = Array.from({length: end - first}, (_, k) =>
      Math.max(1 - Math.abs((k + first - centre + 0.5) / reach), 0));
    const sum = heights.reduce((a, b) => a + b, 0);
    return {first, weights: heights.map(height => Math.trunc(0.5 + height / sum * 2 ** BITS))};
  });
}

// Resize along one axis: bytes of (outer, size, inner) become (outer, places, inner).
function resample(bytes, outer, size, inner, places) {
  const result = new Uint8Array(outer * places.length * inner);
  for (let o = 0, to = 0; o < outer; o++) {
    for (const {first, weights} of places) {
      for (let i = 0, from = (o * size + first) * inner; i < inner; i++, from++) {
        let sum = weights.length && 1 << BITS - 1;
        for (let k = 0; k < weights.length; k++) sum += bytes[from + k * inner] * weights[k];
        result[to++] = clip(sum >> BITS, 0, 255);
      }
    }
  }
  return result;
}
