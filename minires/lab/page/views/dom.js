// Small helpers: elements, numbers as text, and canvases of a channel.

export const $ = id => document.getElementById(id);

export function make(tag, properties = {}, ...children) {
  const element = Object.assign(document.createElement(tag), properties);
  element.append(...children);
  return element;
}

export function draw(tag, attributes = {}, ...children) { // the same for SVG
  const element = document.createElementNS('http://www.w3.org/2000/svg', tag);
  for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
  element.append(...children);
  return element;
}

export const whole = value => (Math.round(value) + 0).toLocaleString('en').replace('-', '−');

export function real(value, digits = 4) {
  const size = Math.abs(value);
  const text = size && size < 0.001 ? value.toExponential(2) : value.toFixed(digits);
  return text.replaceAll('-', '−');
}

export const percent = (share, digits = 1) => `${(100 * share).toFixed(digits)}%`;

export const plural = (count, noun) => `${whole(count)} ${noun}${count === 1 ? '' : 's'}`;

export function softmax(logits) {
  const most = Math.max(...logits), powers = Array.from(logits, v => Math.exp(v - most));
  const sum = powers.reduce((a, b) => a + b);
  return powers.map(v => v / sum);
}

export const likeliest = values => values.indexOf(Math.max(...values));

// From dark blue to pale yellow. Lightness rises all the way, so it also reads in grey.
const RAMP = [[10, 24, 60], [45, 74, 120], [110, 115, 125], [185, 165, 105], [255, 240, 150]];

function shade(share) {
  const at = Math.min(Math.max(share, 0), 1) * (RAMP.length - 1), i = Math.min(Math.floor(at), 3);
  return RAMP[i].map((from, c) => from + (at - i) * (RAMP[i + 1][c] - from));
}

const SHADES = Array.from({length: 256}, (_, i) => shade(i / 255));

// Paint one channel of a step at (top, left) of an image of `width` pixels in a row.
export function paintChannel(image, step, channel, top = 0, left = 0) {
  const {data, height, width, channels} = step;
  let low = Infinity, high = -Infinity;
  for (let i = channel; i < data.length; i += channels) {
    low = Math.min(low, data[i]);
    high = Math.max(high, data[i]);
  }
  for (let y = 0; y < height; y++) for (let x = 0; x < width; x++) {
    const value = data[(y * width + x) * channels + channel] ?? low;
    const colour = SHADES[high > low ? Math.round(255 * (value - low) / (high - low)) : 0];
    image.data.set([...colour, 255], 4 * ((top + y) * image.width + left + x));
  }
}

export function showChannel(canvas, step, channel) {
  Object.assign(canvas, {width: step.width, height: step.height});
  const context = canvas.getContext('2d'), image = context.createImageData(step.width, step.height);
  paintChannel(image, step, channel);
  context.putImageData(image, 0, 0);
}

export function showPhotograph(canvas, {pixels, height, width}) {
  Object.assign(canvas, {width, height});
  const image = new ImageData(width, height);
  for (let i = 0; i < height * width; i++)
    image.data.set([...pixels.subarray(3 * i, 3 * i + 3), 255], 4 * i);
  canvas.getContext('2d').putImageData(image, 0, 0);
}

// Draw the frame that lies over a canvas: around (left, top), in the canvas's own pixels.
export function frame(canvas, left, top, width, height) {
  const across = 100 / canvas.width, down = 100 / canvas.height;
  Object.assign(canvas.nextElementSibling.style, {left: `${left * across}%`, top: `${top * down}%`,
    width: `${width * across}%`, height: `${height * down}%`});
}

// Where a click meets a canvas, in its own pixels: [x, y].
export function placeOf(event, canvas) {
  const box = canvas.getBoundingClientRect();
  const place = (at, from, size, count) =>
    Math.min(Math.max(Math.floor((at - from) / size * count), 0), count - 1);
  return [place(event.clientX, box.left, box.width, canvas.width),
    place(event.clientY, box.top, box.height, canvas.height)];
}

const ARROWS = {ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1]};

// Have `move(x, y)` called for arrow keys on an element.
export function onArrows(element, move) {
  element.addEventListener('keydown', event => {
    if (!(event.key in ARROWS)) return;
    event.preventDefault();
    move(...ARROWS[event.key]);
  });
}

// Labels' bars, FP32 beside INT8: `kinds` are [class, probabilities] in the order of the bars.
export function showLabels(element, categories, kinds, count = 10) {
  const [, first] = kinds.at(-1), order = categories.map((_, i) => i);
  if (categories.length > count) order.sort((a, b) => first[b] - first[a]).splice(count);
  const bars = make('div', {className: 'bars'});
  for (const i of order) {
    const best = kinds.some(([, values]) => likeliest(values) === i);
    bars.append(
      make('span', {className: best ? 'best' : ''}, categories[i]),
      make('span', {className: 'pair'}, ...kinds.map(([kind, values]) => {
        const bar = make('span', {className: `bar ${kind}`});
        bar.style.width = percent(values[i], 2);
        return bar;
      })),
      make('span', {className: 'figures'}, ...kinds.map(([kind, values]) =>
        make('div', {className: `key ${kind}`}, percent(values[i])))));
  }
  element.classList.remove('waiting');
  element.replaceChildren(bars);
}
