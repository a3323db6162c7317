// Small helpers: elements, numbers as text, and canvases of a channel.

import {clip} from '../engine/numbers.js';

export const $ = id => document.getElementById(id);

export function make(tag, properties = {}, ...children) {
  const element = Object.assign(document.createElement(tag), properties);
  element.append(...children);
  return element;
}

// Put other children into an element. A button that had the focus gives it to its successor.
export function renew(parent, ...children) {
  const at = [...parent.querySelectorAll('button')].indexOf(document.activeElement);
  parent.replaceChildren(...children);
  parent.querySelectorAll('button')[at]?.focus();
}

export function draw(tag, attributes = {}, ...children) { // the same for SVG
  const element = document.createElementNS('http://www.w3.org/2000/svg', tag);
  for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
  element.append(...children);
  return element;
}

export const line = (kind, x1, y1, x2, y2) => draw('line', {class: kind, x1, y1, x2, y2});
export const label = (says, x, y, anchor = 'start', kind = '') =>
  draw('text', {class: kind, x, y, 'text-anchor': anchor}, says);

// A sentence that index.html keeps for later.
export const words = name => $('words').content.querySelector(`[data-of="${name}"]`).cloneNode(true);

export const whole = value => (Math.round(value) + 0).toLocaleString('en').replace('-', '−');

export const real = (value, digits = 4) =>
  (value && Math.abs(value) < 0.001 ? value.toExponential(2) : value.toFixed(digits)).replaceAll('-', '−');

export const percent = (share, digits = 1) => `${(100 * share).toFixed(digits)}%`;
export const plural = (count, noun) => `${whole(count)} ${noun}${count === 1 ? '' : 's'}`;

function softmax(logits) {
  const most = Math.max(...logits), powers = Array.from(logits, v => Math.exp(v - most));
  const sum = powers.reduce((a, b) => a + b);
  return powers.map(v => v / sum);
}

export const likeliest = values => values.indexOf(Math.max(...values));

// From dark blue to pale yellow: lightness rises all the way, so it also reads in grey.
const [DARK, LIGHT] = [[10, 24, 60], [255, 240, 150]];
const SHADES = Array.from({length: 256}, (_, i) => DARK.map((from, c) => from + i / 255 * (LIGHT[c] - from)));

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

// Give a canvas a size, and have `paint` fill its image.
export function show(canvas, width, height, paint) {
  Object.assign(canvas, {width, height});
  const image = new ImageData(width, height);
  paint(image);
  canvas.getContext('2d').putImageData(image, 0, 0);
}

export const showChannel = (canvas, step, channel) =>
  show(canvas, step.width, step.height, image => paintChannel(image, step, channel));

export const showPhotograph = (canvas, {pixels, height, width}) => show(canvas, width, height, image => {
  for (let i = 0; i < height * width; i++) image.data.set([...pixels.subarray(3 * i, 3 * i + 3), 255], 4 * i);
});

// Draw the frame that lies over a canvas, as far as it lies there, in the canvas's own pixels.
export function frame(canvas, left, top, right, bottom) {
  const across = x => 100 * clip(x, 0, canvas.width) / canvas.width;
  const down = y => 100 * clip(y, 0, canvas.height) / canvas.height;
  Object.assign(canvas.nextElementSibling.style, {left: `${across(left)}%`, top: `${down(top)}%`,
    width: `${across(right) - across(left)}%`, height: `${down(bottom) - down(top)}%`});
}

// Where a click meets a canvas, in its own pixels: {x, y}.
export const placeOf = ({offsetX, offsetY}, {width, height, clientWidth, clientHeight}) =>
  ({x: offsetX / clientWidth * width, y: offsetY / clientHeight * height});

const ARROWS = {ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1]};

// Have `move(x, y)` called for arrow keys on an element.
export function onArrows(element, move) {
  element.addEventListener('keydown', event => {
    if (!(event.key in ARROWS)) return;
    event.preventDefault();
    move(...ARROWS[event.key]);
  });
}

export const bar = (kind, share) =>
  make('span', {className: `bar ${kind}`, style: `width: ${percent(Math.min(share, 1), 2)}`});

// Rows of bars, FP32 above INT8: [label, [kind, share, text], ...].
export const barsOf = rows => make('div', {className: 'bars'}, ...rows.flatMap(([label, ...kinds]) => [
  make('span', {}, label),
  make('span', {className: 'pair'}, ...kinds.map(([kind, share]) => bar(kind, share))),
  make('span', {className: 'figures'}, ...kinds.map(([kind, , text]) => make('div', {className: `key ${kind}`}, text))),
]));

// What the runs {kind: logits} take a photograph for. Of many classes the likeliest are shown.
export function labelsOf(categories, runs, count = 10) {
  const kinds = Object.entries(runs).map(([kind, logits]) => [kind, softmax(logits)]);
  const [, last] = kinds.at(-1), order = categories.map((_, i) => i);
  if (categories.length > count) order.sort((a, b) => last[b] - last[a]).splice(count);
  return barsOf(order.map(i => [
    kinds.some(([, values]) => likeliest(values) === i) ? make('b', {}, categories[i]) : categories[i],
    ...kinds.map(([kind, values]) => [kind, values[i], percent(values[i])])]));
}
