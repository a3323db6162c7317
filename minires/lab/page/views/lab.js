// What the views share: the networks, the photograph, its runs, and the pixel that was chosen.

import {openNetwork} from '../engine/network.js';
import {decode, example, preprocess} from '../engine/preprocess.js';
import {fetchBytes} from '../engine/safetensors.js';
import {$} from './dom.js';

export const lab = new EventTarget();
Object.assign(lab, {int8: null, fp32: null, plan: null, image: null, picture: null, runs: {},
  at: {layer: 'layer1.0.conv1', channel: 0, y: 8, x: 8}});

const file = name => new URL(`../weights/${name}`, import.meta.url).href;
const tell = name => lab.dispatchEvent(new Event(name));

export const layerOf = name => lab.int8.layers.find(layer => layer.name === name);

// The layers before and behind the four stages are the stem and the head.
export function stageOf(name) {
  if (name.startsWith('layer')) return name.split('.')[0];
  return ['avgpool', 'fc'].includes(name) ? 'head' : 'stem';
}

// An error is one sentence in the page. What worked before still works.
export async function attempt(action) {
  $('trouble').hidden = true;
  try {
    return await action();
  } catch (error) {
    $('trouble').textContent = error.message ?? String(error);
    $('trouble').hidden = false;
  }
}

export const nextFrame = () => new Promise(done => setTimeout(done, 0)); // lets the page be drawn

// What is known before the weights are there: the plan of the network, and the example.
export const openLab = () => attempt(async () => {
  lab.plan = JSON.parse(new TextDecoder().decode(await fetchBytes(file('int8.json'))));
  for (const [precision, bytes] of Object.entries(lab.plan.sizes ?? {}))
    $(`start-${precision}`).querySelector('small').textContent = `${Math.round(bytes / 1e6)} MB`;
  lab.image ??= await example();
  await look();
});

async function look() {
  lab.picture = preprocess(lab.image, lab.plan.preset);
  tell('picture');
  if (!lab.int8) return;
  await nextFrame();
  const {pixels, height, width} = lab.picture, times = [];
  for (const precision of ['int8', 'fp32']) if (lab[precision]) {
    lab.runs[precision] = lab[precision].run(pixels, height, width);
    times.push(`${precision.toUpperCase()} took ${lab.runs[precision].ms.toFixed(0)} ms`);
  }
  $('state').textContent = `${times.join(', ')} for this photograph.`;
  document.body.classList.add('has-run');
  tell('run');
}

async function open(precision) {
  if (!lab.plan) await openLab();
  lab[precision] = await openNetwork(file(`${precision}.safetensors`), {
    precision, onProgress: share => { $('progress').value = share; }});
  await look();
}

export async function start(precision) {
  const button = $(`start-${precision}`), progress = $('progress');
  button.disabled = true;
  progress.hidden = false;
  progress.value = 0;
  $('state').textContent = 'Fetching the weights …';
  await attempt(() => open(precision));
  progress.hidden = true;
  button.disabled = false;
  if (!lab[precision]) $('state').textContent = 'They did not arrive. You can start again.';
  const {sizes} = lab.plan ?? {}, offered = !sizes || 'fp32' in sizes;
  $('start-int8').hidden = Boolean(lab.int8);
  $('start-fp32').hidden = !offered || !lab.int8 || Boolean(lab.fp32);
}

export const runWith = overrides =>
  lab.int8.run(lab.picture.pixels, lab.picture.height, lab.picture.width, {overrides});

export const takePicture = blob => attempt(async () => {
  lab.image = blob ? await decode(blob) : await example();
  await look();
});

// Choose a layer, a channel or a pixel; what the layer does not have becomes its nearest one.
export function choose(change) {
  const at = {...lab.at, ...change}, step = lab.runs.int8.steps.get(at.layer);
  const clip = (value, count) => Math.min(Math.max(Math.trunc(value) || 0, 0), count - 1);
  lab.at = {layer: at.layer, channel: clip(at.channel, step.channels),
    y: clip(at.y, step.height), x: clip(at.x, step.width)};
  tell('choice');
}
