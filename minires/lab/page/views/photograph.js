// The photograph's way: the picture, its label, the map of all layers, a sheet of channels.

import {$, bar, frame, labelsOf, make, onArrows, paintChannel, percent, placeOf, plural, show, showChannel,
  showPhotograph, whole} from './dom.js';
import {choose, chosenStep, lab, logitsOf, realOf, stages, takePicture} from './lab.js';

const STAGES = {stem: 'the photograph, and the first convolution', head: 'average, and the classes'};

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

function chip(step) {
  const {name, channels, height, width} = step;
  const canvas = make('canvas', {ariaHidden: 'true'});
  const short = name.replace(/^layer\d\./, '').replace('downsample.0', 'down');
  const button = make('button', {className: 'chip', onclick: () => choose({layer: name})}, canvas, short);
  let says = `${name}: ${plural(channels, 'channel')} of ${height} by ${width}`;
  const side = Math.ceil(Math.sqrt(channels)); // of a vector's square
  if (height > 1) showChannel(canvas, step, busiest(step));
  else showChannel(canvas, {...step, channels: 1, width: side, height: Math.ceil(channels / side)}, 0);
  if (lab.runs.fp32) {
    const error = errorOf(name);
    says += `, ${percent(error)} away from FP32`;
    button.append(bar('int8', 2 * error));
  }
  button.title = button.ariaLabel = says;
  button.dataset.layer = name;
  return button;
}

function showMap() {
  $('map').replaceChildren(...Object.entries(stages()).map(([name, layers]) => {
    const {height, width, channels} = layers.at(-1);
    const size = name in STAGES ? STAGES[name] : `${height} × ${width} pixels, ${whole(channels)} channels`;
    return make('div', {className: 'stage'},
      make('div', {}, make('span', {}, make('strong', {}, name), make('small', {}, size))),
      make('div', {}, ...layers.map(chip)));
  }));
}

// All channels of the chosen layer, in rows. A line of one pixel lies between two.
const columns = step => ($('sheet').width + 1) / (step.width + 1);

function showSheet() {
  const {layer, channel} = lab.at, step = chosenStep(), canvas = $('sheet');
  const {channels, height, width} = step, fit = Math.max(1, 2 ** Math.floor(Math.log2(512 / (width + 1))));
  const across = Math.min(channels, fit, channels > 16 ? 64 : 8), down = Math.ceil(channels / across);
  const left = c => c % across * (width + 1), top = c => Math.floor(c / across) * (height + 1);
  show(canvas, across * (width + 1) - 1, down * (height + 1) - 1, image => {
    for (let c = 0; c < channels; c++) paintChannel(image, step, c, top(c), left(c));
  });
  canvas.style.width = `${Math.min(canvas.width * Math.max(1, Math.floor(1024 / canvas.width)), 1024)}px`;
  frame(canvas, left(channel), top(channel), left(channel) + width, top(channel) + height);
  $('sheet-title').textContent = `${layer}: ${plural(channels, 'channel')} of ${height} × ${width}`
    + (lab.runs.fp32 ? `, ${percent(errorOf(layer))} away from FP32` : '');
  $('chosen').textContent = channel;
  for (const button of document.querySelectorAll('.chip')) button.ariaCurrent = button.dataset.layer === layer;
}

function showPicture() {
  showPhotograph($('picture'), lab.picture);
  const {height, width} = lab.picture;
  $('picture-note').textContent = `${width} × ${height} pixels: all that the network sees. `
    + (lab.image instanceof ImageBitmap ? 'Your browser decoded it; another decoder may differ by a level.' : '');
}

export function setUp() {
  lab.addEventListener('picture', showPicture);
  lab.addEventListener('run', () => {
    $('labels').replaceChildren(labelsOf(lab.int8.categories, logitsOf()));
    showMap();
    showSheet();
  });
  lab.addEventListener('choice', showSheet);
  const take = ([file]) => file && takePicture(file);
  $('choose').onchange = event => take(event.target.files);
  $('cat').onclick = () => takePicture();
  $('drop').ondragover = $('drop').ondragleave = $('drop').ondrop = event => {
    event.preventDefault();
    $('drop').classList.toggle('over', event.type === 'dragover');
    if (event.type === 'drop') take(event.dataTransfer.files);
  };
  $('sheet').onclick = event => {
    const {x, y} = placeOf(event, $('sheet')), step = chosenStep();
    choose({channel: Math.floor(y / (step.height + 1)) * columns(step) + Math.floor(x / (step.width + 1))});
  };
  onArrows($('sheet'), (x, y) => choose({channel: lab.at.channel + x + y * columns(chosenStep())}));
}
