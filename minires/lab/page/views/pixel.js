// One pixel: what it sees, the bytes that meet, their growing sum, and the way back to eight bits.

import {$, draw, frame, make, onArrows, placeOf, plural, real, renew, showChannel, showPhotograph,
  whole, words} from './dom.js';
import {choose, lab, layerOf} from './lab.js';

let products = [], fp32 = [], at = 0, pixel = null;

const hasWeights = layer => ['conv', 'linear'].includes(layer.kind);

// The part of the photograph that a pixel sees: back through all layers, [top, bottom, left, right].
export function receptiveField(layers, name, y, x) {
  let field = [y, y, x, x];
  for (let layer = layers.get(name); layer?.inputFrom; layer = layers.get(layer.inputFrom)) {
    if (layer.kind === 'avgpool') return [-Infinity, Infinity, -Infinity, Infinity];
    const {kernel, stride, padding} = layer;
    field = field.map((v, i) => v * stride - padding + (i % 2 ? kernel - 1 : 0));
  }
  return field;
}

function showPlaces(layer, step) {
  const {channel, y, x} = lab.at, layers = new Map(lab.int8.layers.map(l => [l.name, l]));
  const [top, bottom, left, right] = receptiveField(layers, layer.name, y, x), photograph = lab.picture;
  const height = bottom - top + 1, width = right - left + 1, clip = (v, most) => Math.min(Math.max(v, 0), most);
  const [first, column] = [clip(top, photograph.height), clip(left, photograph.width)];
  showPhotograph($('field'), photograph);
  const [end, last] = [clip(right + 1, photograph.width), clip(bottom + 1, photograph.height)];
  frame($('field'), column, first, end - column, last - first);
  $('field-note').textContent = Number.isFinite(height)
    ? `It sees ${plural(height, 'row')} and ${plural(width, 'column')} of the photograph${(end - column) * (last - first) < height * width ? ', some beyond its edge' : ''}.`
    : 'It sees the whole photograph.';
  showChannel($('plane'), step, channel);
  frame($('plane'), x, y, 1, 1);
  $('plane-note').textContent = `Channel ${channel} of ${whole(step.channels)}, row ${y}, column ${x}. `
    + 'Click another pixel, or use the arrow keys.';
}

// Every product in the order of the sum, and what the sum has become.
function multiply(explained) {
  const list = [];
  let sum = 0;
  explained.inputs.forEach(({x, w, inside}, tap) => {
    for (let c = 0; c < x.length; c++) list.push({tap, c, inside, x: x[c], w: w[c], sum: sum += x[c] * w[c]});
  });
  return list;
}

const brief = new Intl.NumberFormat('en', {notation: 'compact', maximumSignificantDigits: 2});

function showTaps(layer) {
  const taps = pixel?.inputs ?? [], across = layer.kernel, now = products[Math.max(at - 1, 0)]?.tap;
  $('taps').style.gridTemplateColumns = `repeat(${across}, 1fr)`;
  $('taps').className = across > 4 ? 'many' : '';
  renew($('taps'), ...taps.map((tap, i) => {
    const per = tap.x.length, sum = products[(i + 1) * per - 1].sum - (products[i * per - 1]?.sum ?? 0);
    const done = at >= (i + 1) * per, short = across > 4 ? brief.format(sum).replace('-', '−') : whole(sum);
    const text = done ? short : at > i * per ? '…' : '';
    const button = make('button', {className: `${tap.inside ? '' : 'outside'} ${done ? 'done' : ''}`}, text || '·');
    button.ariaLabel = `Tap ${tap.ky}, ${tap.kx}${tap.inside ? '' : ', padding'}: ${done ? `sum ${whole(sum)}` : 'not yet'}`;
    button.setAttribute('aria-current', at > 0 && i === now);
    button.onclick = () => go((i + 1) * per);
    return button;
  }));
  const padded = taps.filter(tap => !tap.inside).length, zero = lab.runs.int8.steps.get(layer.inputFrom)?.zeroPoint;
  const channels = plural(layer.inChannels, 'channel');
  $('taps-note').textContent = `${plural(taps.length, 'tap')} of ${channels}: ${plural(products.length, 'product')}. `
    + (padded ? `${plural(padded, 'hatched tap')} lie${padded === 1 ? 's' : ''} outside: there x is the zero point, ${zero}.` : '');
}

// Nine rows around the present product. A group of four is one lane of an instruction.
function showRows() {
  const first = Math.min(Math.max(0, Math.ceil(at / 4) * 4 - 8), Math.max(0, products.length - 12));
  $('rows').tBodies[0].replaceChildren(...products.slice(first, first + 12).map((p, i) => {
    const k = first + i, done = k < at, kinds = [];
    if (k === at - 1) kinds.push('now');
    if (!done) kinds.push('next');
    if (at && k >> 2 === at - 1 >> 2) kinds.push('group');
    const result = done ? [whole(p.x * p.w), whole(p.sum)] : ['', ''];
    const cells = [k, p.inside ? p.x : `${p.x} (padding)`, whole(p.w), ...result];
    return make('tr', {className: kinds.join(' ')}, ...cells.map(text => make('td', {}, String(text))));
  }));
}

function showGrowth(unit) {
  const width = 600, height = 240, n = products.length;
  const zero = lab.runs.int8.steps.get(layerOf(lab.at.layer).inputFrom).zeroPoint;
  let sum = 0;
  const lines = {int8: products.map(p => (sum += (p.x - zero) * p.w) * unit), fp32: fp32.map(p => p.sum)};
  const all = [0, ...lines.int8, ...lines.fp32], low = Math.min(...all), high = Math.max(...all);
  const place = value => 12 + (height - 34) * (high - value) / (high - low || 1);
  const points = (values, until) => ['0,' + place(0), ...values.slice(0, until).map((v, k) =>
    `${(k + 1) / n * width},${place(v)}`)].join(' ');
  $('growth').replaceChildren(
    draw('line', {class: 'axis', x1: 0, x2: width, y1: place(0), y2: place(0)}),
    draw('polyline', {class: 'line fp32', points: points(lines.fp32, at)}),
    draw('polyline', {class: 'line int8', points: points(lines.int8, at)}),
    draw('text', {x: width, y: height - 2, 'text-anchor': 'end'}, `${whole(n)} products`),
    draw('text', {x: 4, y: 12}, real(high, 2)), draw('text', {x: 4, y: height - 6}, real(low, 2)));
}

function link(label, value, says, kind = '') {
  return make('li', {className: kind}, make('small', {}, label), make('b', {}, value), make('small', {}, says));
}

function showChain(layer) {
  const p = pixel, sum = products.at(-1).sum, ended = at === products.length;
  const show = (value, text) => ended ? text(value) : '…';
  const classifier = layer.kind === 'linear', kind = ended ? '' : 'waiting';
  const links = [link('sum, s32', whole(at ? products[at - 1].sum : 0), `${plural(at, 'product')} of u8 and s8, exact`),
    link('+ bias, s32', show(sum + p.bias, whole), `${whole(p.bias)}, with the input’s zero point in it`, kind),
    link(`× ${real(p.multiplier, 6)}`, show(Math.fround(Math.fround(sum + p.bias) * p.multiplier), real),
      `x scale × w scale${classifier ? '' : ' ÷ y scale'}`, kind)];
  if (p.residual) links.push(link('+ residual', show(p.scaled, real),
    `(${p.residual.q} − ${p.residual.zeroPoint}) × ${real(p.residual.multiplier, 6)}; nothing was rounded before`, kind));
  if (!classifier) links.push(
    link('clip', show(p.clipped, real), `to ${whole(-p.zeroPoint)} … ${whole(255 - p.zeroPoint)}`
      + (layer.relu ? ': this is the ReLU, too' : ''), kind),
    link('round', show(p.rounded, whole), 'to the nearest; halves to the even one. Once.', kind),
    link(`+ zero point ${p.zeroPoint}`, show(p.value, String), 'a byte again: u8', `result ${kind}`));
  links.push(link('stands for', show(p.real, real), classifier ? 'a logit: it stays a float'
    : `${real(lab.runs.int8.steps.get(layer.name).scale, 6)} a step`, kind));
  $('chain').replaceChildren(...links);
}

function showDifference(layer, step) {
  const {channel, y, x} = lab.at, i = (y * step.width + x) * step.channels + channel;
  const value = step.data[i], byte = step.data instanceof Uint8Array;
  const other = lab.runs.fp32?.steps.get(layer.name).data[i], off = other / step.scale + step.zeroPoint;
  const place = v => 4 + 592 * Math.min(Math.max(v, 0), 255) / 255;
  $('ruler').toggleAttribute('hidden', !byte);
  if (byte) $('ruler').replaceChildren(draw('line', {class: 'axis', x1: 4, x2: 596, y1: 36, y2: 36}),
    ...[0, 64, 128, 192, 255].map(v => draw('text', {x: place(v), y: 62, 'text-anchor': v % 255 ? 'middle' : v ? 'end' : 'start'}, v)),
    draw('line', {class: 'line int8', x1: place(value), x2: place(value), y1: 22, y2: 48}),
    ...(other === undefined ? [] : [draw('line', {class: 'line fp32', x1: place(off), x2: place(off), y1: 12, y2: 48})]));
  $('difference').textContent = (byte ? `INT8 has ${value}, which stands for ${real((value - step.zeroPoint) * step.scale)}. `
    : `INT8 has ${real(value)}. `) + (other === undefined
    ? 'Add FP32 above to see its value beside it.'
    : `FP32 has ${real(other)}${byte ? `: ${Math.abs(value - off).toFixed(2)} steps away` : ''}.`);
}

function show() {
  const layer = layerOf(lab.at.layer), step = lab.runs.int8.steps.get(layer.name);
  showPlaces(layer, step);
  $('products').hidden = $('taps-figure').hidden = !pixel;
  if (pixel) {
    $('step').value = at;
    $('step-note').textContent = `${whole(at)} of ${whole(products.length)}`;
    $('back').disabled = at === 0;
    $('forward').disabled = $('tap-on').disabled = at === products.length;
    showTaps(layer);
    showRows();
    showGrowth(pixel.multiplier * (layer.kind === 'linear' ? 1 : step.scale));
    showChain(layer);
  } else $('chain').replaceChildren(link(layer.kind, '', words(layer.kind))); // it has no products
  showDifference(layer, step);
}

function go(to) {
  at = Math.min(Math.max(to, 0), products.length);
  show();
}

function recompute() {
  const {layer, channel, y, x} = lab.at, step = lab.runs.int8.steps.get(layer);
  pixel = hasWeights(layerOf(layer)) ? lab.int8.explain(lab.runs.int8, layer, y, x, channel) : null;
  products = pixel ? multiply(pixel) : [];
  fp32 = pixel && lab.runs.fp32 ? multiply(lab.fp32.explain(lab.runs.fp32, layer, y, x, channel)) : [];
  $('step').max = products.length;
  $('layer').value = layer;
  for (const [id, value, count] of [['channel', channel, step.channels], ['row', y, step.height], ['column', x, step.width]])
    Object.assign($(id), {value, max: count - 1});
  go(products.length);
}

export function setUp() {
  lab.addEventListener('run', () => {
    $('layer').replaceChildren(...lab.int8.layers.map(layer => make('option', {}, layer.name)));
    choose({});
  });
  lab.addEventListener('choice', recompute);
  for (const [id, key] of [['layer', 'layer'], ['channel', 'channel'], ['row', 'y'], ['column', 'x']])
    $(id).onchange = event => choose({[key]: event.target.value});
  $('plane').onclick = event => {
    const [x, y] = placeOf(event, $('plane'));
    choose({x, y});
  };
  onArrows($('plane'), (x, y) => choose({x: lab.at.x + x, y: lab.at.y + y}));
  const tapEnd = () => products[at] ? (products[at].tap + 1) * pixel.inputs[0].x.length : at;
  const targets = {back: () => at - 1, forward: () => at + 1, 'tap-on': tapEnd, all: () => products.length};
  for (const [id, target] of Object.entries(targets)) $(id).onclick = () => go(target());
  $('step').oninput = event => go(Number(event.target.value));
}
