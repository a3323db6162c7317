// One range: a layer's real values, the range that its steps cover, and what becomes of the label.

import {clip, rint, toStep} from '../engine/numbers.js';
import {$, draw, label, labelsOf, likeliest, line, make, percent, real, whole} from './dom.js';
import {attempt, lab, logitsOf, realOf, run} from './lab.js';

const WIDTH = 900, HEIGHT = 260, BASE = 225, BINS = 150;
let values = [], extent = [0, 1], range = [0, 1], waiting = 0;

const bits = () => Number($('bits').value);
const layer = () => $('range-layer').value;
const placeOf = value => WIDTH * (value - extent[0]) / (extent[1] - extent[0]);

// The scale and zero point with which 2 ** bits steps cover a range. Zero is always one of them.
function cover([low, high], bits) {
  const most = 2 ** bits - 1, scale = Math.max(high - low, 1e-6) / most;
  return {scale, bits, zeroPoint: clip(Math.round(-low / scale), 0, most)};
}

const calibrated = ({scale, zeroPoint}) => [-zeroPoint * scale, (255 - zeroPoint) * scale];

function overrides() {
  const all = {};
  if ($('everywhere').checked) for (const [name, step] of lab.runs.int8.steps)
    if (step.data instanceof Uint8Array) all[name] = cover(calibrated(step), bits());
  return {...all, [layer()]: cover(range, bits())};
}

// Take the layer's values, in real numbers: those of FP32 where it is there.
function take() {
  const step = lab.runs.int8.steps.get(layer()), other = lab.runs.fp32?.steps.get(layer());
  values = other?.data ?? Float32Array.from(step.data, (_, i) => realOf(step, i));
  range = calibrated(step);
  const low = values.reduce((least, value) => Math.min(least, value), Math.min(range[0], 0));
  extent = [low, 1.02 * values.reduce((most, value) => Math.max(most, value), range[1])];
  for (const id of ['low', 'high']) Object.assign($(id), {min: extent[0], max: extent[1]});
  $('low').disabled = low === 0;
  $('histogram-note').textContent = `${whole(values.length)} values of ${layer()}`
    + `${other ? ', as FP32 computes them' : '; add FP32 above to see them before they are rounded'}. `
    + 'Heights are logarithmic: a bar twice as high is far more than twice as many.';
}

function histogram() {
  const counts = new Float64Array(BINS), [low, high] = extent;
  for (const value of values) counts[Math.min(BINS - 1, Math.floor(BINS * (value - low) / (high - low)))]++;
  const most = Math.log1p(Math.max(...counts)), [from, to] = range.map(placeOf), bar = WIDTH / BINS;
  const bars = Array.from(counts, (count, i) => {
    const height = (BASE - 20) * Math.log1p(count) / most, x = i * bar;
    const lost = x + bar / 2 < from || x + bar / 2 > to;
    return draw('rect', {class: `fill ${lost ? 'lost' : 'fp32'}`, x, width: bar - 1, y: BASE - height, height});
  });
  const {scale} = cover(range, bits()), steps = Math.round((range[1] - range[0]) / scale), marks = [];
  if (steps <= 128) for (let i = 0; i <= steps; i++) { // where they can be told apart
    const x = placeOf(range[0] + i * scale);
    marks.push(line('mark int8', x, BASE, x, BASE + 9));
  }
  const edge = (x, value, side, fixed) => [line('line int8', x, 4, x, BASE + 9),
    draw('circle', {class: 'fill int8', cx: x, cy: 12, r: fixed ? 0 : 8}),
    label(real(value, 2), x, HEIGHT - 6, side, 'strong')];
  $('histogram').replaceChildren(...bars, ...marks, ...edge(from, range[0], 'start', $('low').disabled),
    ...edge(to, range[1], to > WIDTH / 8 ? 'end' : 'start'));
}

function showNumbers() {
  const q = cover(range, bits()), {scale} = q;
  let outside = 0, error = 0, signal = 0;
  for (const value of values) {
    const {scaled, rounded} = toStep(value / scale, q);
    outside += rounded !== rint(scaled);
    error += (rounded * scale - value) ** 2;
    signal += value ** 2;
  }
  const ratio = error ? `${(10 * Math.log10(signal / error)).toFixed(1)} dB` : '∞';
  const numbers = {step: real(scale, 5), 'cut off': percent(outside / values.length, 2),
    'error, root mean square': real(Math.sqrt(error / values.length), 5), 'signal to noise': ratio, steps: 2 ** q.bits};
  $('range-numbers').replaceChildren(...Object.entries(numbers).map(([name, value]) =>
    make('div', {}, make('dt', {}, name), make('dd', {}, String(value)))));
}

function answer() {
  const now = run(lab.int8, {overrides: overrides()}), names = lab.int8.categories;
  const [before, after] = [lab.runs.int8, now].map(({logits}) => likeliest(logits));
  $('range-labels').replaceChildren(make('p', {}, after === before ? `It is still “${names[after]}”.`
    : `It was “${names[before]}”. Now it is “${names[after]}”.`),
  labelsOf(names, logitsOf(now), 5));
}

// Draw at once. The network follows when the page has a moment, once for however many changes.
function show() {
  $('bits-note').textContent = bits();
  $('low').value = range[0];
  $('high').value = range[1];
  histogram();
  showNumbers();
  clearTimeout(waiting);
  waiting = setTimeout(() => attempt(answer), 30);
}

function reset() {
  $('bits').value = 8;
  $('everywhere').checked = false;
  take();
  show();
}

// Zero stays inside, and the range never closes.
function move(side, value) {
  const least = (extent[1] - extent[0]) / 200;
  range[side] = side ? clip(value, least, extent[1]) : clip(value, extent[0], 0);
  show();
}

function drag(event) {
  const svg = $('histogram'), box = svg.getBoundingClientRect();
  const valueAt = ({clientX}) => extent[0] + (extent[1] - extent[0]) * (clientX - box.left) / box.width;
  const [low, high] = range.map(value => Math.abs(value - valueAt(event)));
  const side = $('low').disabled || high < low ? 1 : 0;
  svg.setPointerCapture(event.pointerId);
  svg.onpointermove = moved => move(side, valueAt(moved));
  svg.onpointerup = svg.onpointercancel = () => { svg.onpointermove = null; };
  move(side, valueAt(event));
}

export function setUp() {
  lab.addEventListener('run', () => {
    const chosen = layer() || 'layer2.1.conv2', all = [...lab.runs.int8.steps.values()];
    $('range-layer').replaceChildren(...all.filter(({op}) => op === 'conv' || op === 'input').map(({name}) =>
      make('option', {selected: name === chosen}, name)));
    reset();
  });
  $('range-layer').onchange = () => { take(); show(); };
  $('bits').oninput = $('everywhere').onchange = show;
  $('low').oninput = event => move(0, Number(event.target.value));
  $('high').oninput = event => move(1, Number(event.target.value));
  $('range-reset').onclick = reset;
  $('histogram').onpointerdown = drag;
}
