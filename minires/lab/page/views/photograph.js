// The photograph's way: the picture, its label, the map of all layers, a sheet of channels.

import {$, bar, frame, labelsOf, make, onArrows, paintChannel, percent, placeOf, plural, showChannel,
  showPhotograph, whole} from './dom.js';
import {choose, lab, stageOf, takePicture} from './lab.js';

const STAGES = {stem: 'the photograph, and the first convolution', head: 'average, and the classes'};

// The real numbers that a step's values stand for.
export const realOf = (step, i) => step.data instanceof Uint8Array
  ? (step.data[i] - step.zeroPoint) * step.scale : step.data[i];

// How far INT8 is from FP32: the root of the mean squared error, as a share of the signal's.
function errorOf(name) {
  const [a, b] = [lab.runs.int8.steps.get(name), lab.runs.fp32.steps.get(name)];
  let error = 0, signal = 0;
  for (let i = 0; i < a.data.length; i++) {
    error += (realOf(a, i) - b.data[i]) ** 2;
    signal += b.data[i] ** 2;
  }
  return Math.sqrt(error / signal);
}

// The channel whose values differ most.
function busiest({data, channels}) {
  const sums = new Float64Array(channels), squares = new Float64Array(channels);
  data.forEach((value, i) => {
    sums[i % channels] += value;
    squares[i % channels] += value ** 2;
  });
  const spread = squares.map((square, c) => square - sums[c] ** 2 * channels / data.length);
  return spread.indexOf(Math.max(...spread));
}

function chip(layer) {
  const step = lab.runs.int8.steps.get(layer.name), {channels} = step;
  const canvas = make('canvas', {ariaHidden: 'true'}), short = layer.name.replace(/^layer\d\./, '');
  const button = make('button', {className: 'chip'}, canvas, short.replace('downsample.0', 'down'));
  let says = `${layer.name}: ${plural(step.channels, 'channel')} of ${step.height} by ${step.width}`;
  const flat = step.height === 1 && {...step, channels: 1, width: Math.ceil(Math.sqrt(channels))};
  if (flat) showChannel(canvas, {...flat, height: Math.ceil(channels / flat.width)}, 0);
  else showChannel(canvas, step, busiest(step));
  if (lab.runs.fp32) {
    const error = errorOf(layer.name);
    says += `, ${percent(error)} away from FP32`;
    button.append(bar('int8', 2 * error));
  }
  button.title = button.ariaLabel = says;
  button.dataset.layer = layer.name;
  button.onclick = () => choose({layer: layer.name});
  return button;
}

function showMap() {
  const stages = new Map();
  for (const layer of lab.int8.layers) {
    const stage = stageOf(layer.name);
    if (!stages.has(stage)) stages.set(stage, []);
    stages.get(stage).push(layer);
  }
  $('map').replaceChildren(...[...stages].map(([name, layers]) => {
    const {height, width, channels} = lab.runs.int8.steps.get(layers.at(-1).name);
    const size = name in STAGES ? STAGES[name] : `${height} × ${width} pixels, ${whole(channels)} channels`;
    return make('div', {className: 'stage'},
      make('div', {}, make('span', {}, make('strong', {}, name), make('small', {}, size))),
      make('div', {}, ...layers.map(chip)));
  }));
}

// All channels of the chosen layer, in rows.
let sheet = {across: 1, pitch: 1};

function showSheet() {
  const {layer, channel} = lab.at, step = lab.runs.int8.steps.get(layer), canvas = $('sheet');
  const fit = Math.max(1, 2 ** Math.floor(Math.log2(512 / (step.width + 1))));
  const across = Math.min(step.channels, fit, step.channels > 16 ? 64 : 8);
  const pitch = step.width + 1, rows = Math.ceil(step.channels / across);
  sheet = {across, pitch};
  Object.assign(canvas, {width: across * pitch - 1, height: rows * (step.height + 1) - 1});
  canvas.style.width = `${Math.min(canvas.width * Math.max(1, Math.floor(1024 / canvas.width)), 1024)}px`;
  const context = canvas.getContext('2d'), image = context.createImageData(canvas.width, canvas.height);
  for (let c = 0; c < step.channels; c++)
    paintChannel(image, step, c, Math.floor(c / across) * (step.height + 1), c % across * pitch);
  context.putImageData(image, 0, 0);
  frame(canvas, channel % across * pitch, Math.floor(channel / across) * (step.height + 1), step.width, step.height);
  $('sheet-title').textContent = `${layer}: ${plural(step.channels, 'channel')} of ${step.height} × ${step.width}`
    + (lab.runs.fp32 ? `, ${percent(errorOf(layer))} away from FP32` : '');
  $('sheet-note').replaceChildren(`Channel ${channel} is chosen. `,
    make('a', {href: '#pixel'}, 'Look at one of its pixels'));
  for (const button of document.querySelectorAll('.chip'))
    button.setAttribute('aria-current', button.dataset.layer === layer);
}

function showPicture() {
  showPhotograph($('picture'), lab.picture);
  const {height, width} = lab.picture;
  $('picture-note').textContent = `${width} × ${height} pixels: all that the network sees. `
    + (lab.image instanceof ImageBitmap ? 'Your browser decoded it; another decoder may differ by a level.' : '');
}

function showLikeliest() {
  const {int8, fp32} = lab.runs, runs = fp32 ? {fp32: fp32.logits, int8: int8.logits} : {int8: int8.logits};
  $('labels').replaceChildren(labelsOf(lab.int8.categories, runs));
}

export function setUp() {
  lab.addEventListener('picture', showPicture);
  lab.addEventListener('run', () => { showLikeliest(); showMap(); showSheet(); });
  lab.addEventListener('choice', showSheet);
  $('choose').onchange = event => event.target.files[0] && takePicture(event.target.files[0]);
  $('cat').onclick = () => takePicture();
  const drop = $('drop');
  drop.ondragover = event => { event.preventDefault(); drop.classList.add('over'); };
  drop.ondragleave = () => drop.classList.remove('over');
  drop.ondrop = event => {
    event.preventDefault();
    drop.classList.remove('over');
    if (event.dataTransfer.files[0]) takePicture(event.dataTransfer.files[0]);
  };
  $('sheet').onclick = event => {
    const [x, y] = placeOf(event, $('sheet')), step = lab.runs.int8.steps.get(lab.at.layer);
    choose({channel: Math.floor(y / (step.height + 1)) * sheet.across + Math.floor(x / sheet.pitch)});
  };
  onArrows($('sheet'), (x, y) => choose({channel: lab.at.channel + x + y * sheet.across}));
}
