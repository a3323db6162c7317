// What the views share: the networks, the photograph, its runs, and the pixel that was chosen.

import {fetchJson} from '../engine/fetch.js';
import {openNetwork} from '../engine/network.js';
import {clip} from '../engine/numbers.js';
import {decode, example, preprocess} from '../engine/preprocess.js';
import {$} from './dom.js';

export const lab = new EventTarget();
Object.assign(lab, {int8: null, fp32: null, plan: null, image: null, picture: null, runs: {},
  at: {layer: 'layer1.0.conv1', channel: 0, y: 8, x: 8}});

const file = name => new URL(`../weights/${name}`, import.meta.url).href;
const tell = name => lab.dispatchEvent(new Event(name));

// The layers, stage by stage: {stem: [...], layer1: [...], ..., head: [...]}.
export function stages() {
  const found = {};
  for (const layer of lab.runs.int8.steps.values()) {
    const stage = /^layer\d/.exec(layer.name)?.[0] ?? ('layer1' in found ? 'head' : 'stem');
    (found[stage] ??= []).push(layer);
  }
  return found;
}

export const chosenStep = () => lab.runs.int8.steps.get(lab.at.layer);

// The real number that a step's value stands for.
export const realOf = (step, i) => (step.data[i] - step.zeroPoint) * step.scale;

// What the photograph was taken for: {fp32, int8}, or INT8 alone.
export const logitsOf = (int8 = lab.runs.int8) =>
  lab.runs.fp32 ? {fp32: lab.runs.fp32.logits, int8: int8.logits} : {int8: int8.logits};

// An error is one sentence in the page. What worked before still works, and the button can be pressed again.
export async function attempt(action, button = {}) {
  button.disabled = $('trouble').hidden = true;
  try {
    return await action();
  } catch (error) {
    $('trouble').textContent = error.message ?? String(error);
    $('trouble').hidden = false;
  } finally {
    button.disabled = false;
  }
}

export const nextFrame = () => new Promise(done => setTimeout(done, 0)); // lets the page be drawn

// What is known before the weights are there: the plan of the network, and the example.
export const openLab = () => attempt(async () => {
  lab.plan = await fetchJson(file('int8.json'));
  for (const [precision, bytes] of Object.entries(lab.plan.sizes ?? {}))
    $(`start-${precision}`).querySelector('small').textContent = `${Math.round(bytes / 1e6)} MB`;
  lab.image ??= await example();
  await look();
});

// Have a network look at the picture.
export const run = (network, options) =>
  network.run(lab.picture.pixels, lab.picture.height, lab.picture.width, options);

async function look() {
  lab.picture = preprocess(lab.image, lab.plan.preset);
  tell('picture');
  if (!lab.int8) return;
  await nextFrame();
  const times = [];
  for (const precision of ['int8', 'fp32']) if (lab[precision]) {
    lab.runs[precision] = run(lab[precision]);
    times.push(`${precision.toUpperCase()} took ${lab.runs[precision].ms.toFixed(0)} ms`);
  }
  $('state').textContent = `${times.join(', ')} for this photograph.`;
  document.body.classList.add('has-run');
  tell('run');
}

export async function start(precision) {
  const progress = $('progress');
  Object.assign(progress, {hidden: false, value: 0});
  $('state').textContent = 'Fetching the weights …';
  await attempt(async () => {
    if (!lab.plan) await openLab();
    const onProgress = share => { progress.value = share; };
    lab[precision] = await openNetwork(file(`${precision}.safetensors`), {precision, onProgress});
    await look();
  }, $(`start-${precision}`));
  progress.hidden = true;
  if (!lab[precision]) $('state').textContent = 'They did not arrive. You can start again.';
  const {sizes} = lab.plan ?? {}, offered = !sizes || 'fp32' in sizes;
  $('start-int8').hidden = Boolean(lab.int8);
  $('start-fp32').hidden = !offered || !lab.int8 || Boolean(lab.fp32);
}

export const takePicture = blob => attempt(async () => {
  lab.image = blob ? await decode(blob) : await example();
  await look();
});

// Choose a layer, a channel or a pixel; what the layer does not have becomes its nearest one.
export function choose(change) {
  const at = {...lab.at, ...change}, step = lab.runs.int8.steps.get(at.layer);
  const nearest = (value, count) => clip(Math.trunc(value) || 0, 0, count - 1);
  lab.at = {layer: at.layer, channel: nearest(at.channel, step.channels),
    y: nearest(at.y, step.height), x: nearest(at.x, step.width)};
  tell('choice');
}
