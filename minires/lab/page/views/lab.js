// What the views share: the networks, the photograph, its runs, and the pixel that was chosen.

import {openNetwork} from '../engine/network.js';
import {decode, example, preprocess} from '../engine/preprocess.js';
import {$} from './dom.js';

export const lab = new EventTarget();
Object.assign(lab, {int8: null, fp32: null, image: null, picture: null, runs: {},
  at: {layer: 'layer1.0.conv1', channel: 0, y: 8, x: 8}});

const WEIGHTS = {int8: '../weights/int8.safetensors', fp32: '../weights/fp32.safetensors'};

const tell = name => lab.dispatchEvent(new Event(name));

export const layerOf = name => lab.int8.layers.find(layer => layer.name === name);

// An error is one sentence in the page. What worked before still works.
export function complain(error) {
  const text = error.message ?? String(error);
  $('trouble').textContent = text.charAt(0).toUpperCase() + text.slice(1).replace(/\.?$/, '.');
  $('trouble').hidden = false;
}

export async function attempt(action) {
  $('trouble').hidden = true;
  try {
    return await action();
  } catch (error) {
    complain(error);
  }
}

// The layers before and behind the four stages are the stem and the head.
export function stageOf(name) {
  if (name.startsWith('layer')) return name.split('.')[0];
  return ['avgpool', 'fc'].includes(name) ? 'head' : 'stem';
}

export const nextFrame = () => new Promise(done => setTimeout(done, 0)); // lets the page be drawn

async function open(precision) {
  const button = $(`start-${precision}`), progress = $('progress'), state = $('state');
  button.disabled = true;
  progress.hidden = false;
  progress.value = 0;
  state.textContent = 'Fetching the weights …';
  try {
    lab[precision] = await openNetwork(new URL(WEIGHTS[precision], import.meta.url), {
      precision, onProgress: share => { progress.value = share; }});
    button.hidden = true;
    await nextFrame();
    await run();
  } finally {
    button.disabled = false;
    progress.hidden = true;
    if (!lab.int8) state.textContent = 'Nothing was fetched. You can start again.';
  }
}

export async function start(precision) {
  await attempt(() => open(precision));
  $('start-fp32').hidden = !lab.int8 || Boolean(lab.fp32);
}

// Run every network that is there on the photograph.
async function run() {
  lab.image ??= await example();
  lab.picture = preprocess(lab.image, lab.int8.preset);
  const {pixels, height, width} = lab.picture, times = [];
  for (const precision of ['int8', 'fp32']) if (lab[precision]) {
    lab.runs[precision] = lab[precision].run(pixels, height, width);
    times.push(`${precision.toUpperCase()} took ${lab.runs[precision].ms.toFixed(0)} ms`);
  }
  $('state').textContent = `${times.join(', ')} for this photograph.`;
  document.body.classList.add('has-run');
  tell('run');
}

export const runWith = overrides =>
  lab.int8.run(lab.picture.pixels, lab.picture.height, lab.picture.width, {overrides});

export const takePicture = blob => attempt(async () => {
  lab.image = blob ? await decode(blob) : await example();
  if (lab.int8) await run();
  else $('state').textContent = 'Your picture is there. Start the network to see what it sees.';
});

// Choose a layer, a channel or a pixel; what the layer does not have becomes its nearest one.
export function choose(change) {
  const at = {...lab.at, ...change}, step = lab.runs.int8.steps.get(at.layer);
  const clip = (value, count) => Math.min(Math.max(Math.trunc(value) || 0, 0), count - 1);
  lab.at = {layer: at.layer, channel: clip(at.channel, step.channels),
    y: clip(at.y, step.height), x: clip(at.x, step.width)};
  tell('choice');
}
