// One pixel: what it sees, the bytes that meet, their growing sum, and the way back to eight bits.

import {clip, f} from '../engine/numbers.js';
import {$, draw, frame, label, line, make, onArrows, placeOf, plural, real, renew, showChannel, showPhotograph,
  whole, words} from './dom.js';
import {choose, chosenStep, lab, realOf} from './lab.js';

let products = [], fp32 = [], at = 0, pixel = null;

// The part of the photograph that a pixel sees: back through all layers, [top, bottom, left, right].
function receptiveField(step, y, x) {
  let field = [y, y, x, x];
  for (; step.inputFrom; step = lab.runs.int8.steps.get(step.inputFrom)) {
    if (step.op === 'avgpool') return [-Infinity, Infinity, -Infinity, Infinity];
    const {kernel, stride, padding} = step;
    field = field.map((v, i) => v * stride - padding + (i % 2 ? kernel - 1 : 0));
  }
  return field;
}

function showPlaces(step) {
  const {channel, y, x} = lab.at, {height, width} = lab.picture;
  const [top, bottom, left, right] = receptiveField(step, y, x);
  showPhotograph($('field'), lab.picture);
  frame($('field'), left, top, right + 1, bottom + 1);
  const size = `${plural(bottom - top + 1, 'row')} and ${plural(right - left + 1, 'column')} of the photograph`;
  const beyond = Math.min(top, left) < 0 || bottom >= height || right >= width ? ', some beyond its edge' : '';
  $('field-note').textContent = `It sees ${Number.isFinite(top) ? size + beyond : 'the whole photograph'}.`;
  showChannel($('plane'), step, channel);
  frame($('plane'), x, y, x + 1, y + 1);
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

function showTaps({kernel, inChannels: per, inputFrom}) {
  const taps = pixel.inputs, many = kernel > 4;
  $('taps').style.gridTemplateColumns = `repeat(${kernel}, 1fr)`;
  $('taps').className = many ? 'many' : '';
  renew($('taps'), ...taps.map(({ky, kx, inside}, i) => {
    const start = i * per, end = start + per, done = at >= end;
    const sum = products[end - 1].sum - (products[start - 1]?.sum ?? 0);
    const text = many ? brief.format(sum).replace('-', '−') : whole(sum);
    return make('button', {
      className: `${inside ? '' : 'outside'} ${done ? 'done' : ''}`,
      ariaLabel: `Tap ${ky}, ${kx}${inside ? '' : ', padding'}: ${done ? `sum ${whole(sum)}` : 'not yet'}`,
      ariaCurrent: at > start && at <= end,
      onclick: () => go(end),
    }, done ? text : at > start ? '…' : '·');
  }));
  const padded = taps.filter(tap => !tap.inside).length, zero = lab.runs.int8.steps.get(inputFrom).zeroPoint;
  const all = `${plural(taps.length, 'tap')} of ${plural(per, 'channel')}: ${plural(products.length, 'product')}. `;
  const outside = `${plural(padded, 'hatched tap')} outside: there x is the zero point, ${zero}.`;
  $('taps-note').textContent = padded ? all + outside : all;
}

// A dozen rows around the present product. A group of four is one lane of an instruction.
function showRows() {
  const first = Math.max(0, Math.min(Math.ceil(at / 4) * 4 - 8, products.length - 12));
  $('rows').tBodies[0].replaceChildren(...products.slice(first, first + 12).map((p, i) => {
    const k = first + i, done = k < at, group = at && k >> 2 === at - 1 >> 2;
    const className = `${k === at - 1 ? 'now' : ''} ${done ? '' : 'next'} ${group ? 'group' : ''}`;
    const result = done ? [whole(p.x * p.w), whole(p.sum)] : ['', ''];
    const cells = [k, p.inside ? p.x : `${p.x} (padding)`, whole(p.w), ...result];
    return make('tr', {className}, ...cells.map(text => make('td', {}, String(text))));
  }));
}

function showGrowth(step) {
  const width = 600, height = 240, n = products.length, zero = lab.runs.int8.steps.get(step.inputFrom).zeroPoint;
  const unit = pixel.multiplier * step.scale; // of the sum, in real numbers
  let sum = 0;
  const int8 = products.map(p => (sum += (p.x - zero) * p.w) * unit), others = fp32.map(p => p.sum);
  const low = Math.min(0, ...int8, ...others), high = Math.max(0, ...int8, ...others);
  const place = value => 12 + (height - 34) * (high - value) / (high - low || 1);
  const curve = (kind, values) => draw('polyline', {class: `line ${kind}`, points:
    [0, ...values.slice(0, at)].map((value, k) => `${k / n * width},${place(value)}`).join(' ')});
  $('growth').replaceChildren(line('axis', 0, place(0), width, place(0)), curve('fp32', others),
    curve('int8', int8), label(`${whole(n)} products`, width, height - 2, 'end'),
    label(real(high, 2), 4, 12), label(real(low, 2), 4, height - 6));
}

function link(label, value, says, kind = '') {
  return make('li', {className: kind}, make('small', {}, label), make('b', {}, value), make('small', {}, says));
}

function showChain(step) {
  const p = pixel, ended = at === products.length, classifier = step.op === 'linear', {residual} = p;
  const then = (name, value, text, says, kind = '') => // what comes when the sum is whole
    link(name, ended ? text(value) : '…', says, `${kind} ${ended ? '' : 'waiting'}`);
  const links = [
    link('sum, s32', whole(products[at - 1]?.sum ?? 0), `${plural(at, 'product')} of u8 and s8, exact`),
    then('+ bias, s32', p.sum, whole, `${whole(p.bias)}, with the input’s zero point in it`),
    then(`× ${real(p.multiplier, 6)}`, f(f(p.sum) * p.multiplier), real,
      `x scale × w scale${classifier ? '' : ' ÷ y scale'}`)];
  if (residual) links.push(then('+ residual', p.scaled, real,
    `(${residual.q} − ${residual.zeroPoint}) × ${real(residual.multiplier, 6)}; nothing was rounded before`));
  if (!classifier) links.push(
    then('clip', p.clipped, real, `to ${whole(-p.zeroPoint)} … ${whole(255 - p.zeroPoint)}`
      + (step.relu ? ': this is the ReLU, too' : '')),
    then('round', p.rounded, whole, 'to the nearest; halves to the even one. Once.'),
    then(`+ zero point ${p.zeroPoint}`, p.value, String, 'a byte again: u8', 'result'));
  links.push(then('stands for', p.real, real,
    classifier ? 'a logit: it stays a float' : `${real(step.scale, 6)} a step`));
  $('chain').replaceChildren(...links);
}

function showDifference(step) {
  const {channel, y, x} = lab.at, i = (y * step.width + x) * step.channels + channel;
  const value = step.data[i], byte = step.data instanceof Uint8Array;
  const other = lab.runs.fp32?.steps.get(step.name).data[i], off = other / step.scale + step.zeroPoint;
  const place = v => 4 + 592 * clip(v, 0, 255) / 255, mark = (kind, v, top) => line(kind, place(v), top, place(v), 48);
  $('ruler').toggleAttribute('hidden', !byte);
  $('ruler').replaceChildren(line('axis', 4, 36, 596, 36), label(0, 4, 62), label(255, 596, 62, 'end'),
    ...[64, 128, 192].map(v => label(v, place(v), 62, 'middle')), mark('line int8', value, 22));
  if (other !== undefined) $('ruler').append(mark('line fp32', off, 12));
  const ours = byte ? `${value}, which stands for ${real(realOf(step, i))}` : real(value);
  const theirs = other === undefined ? 'Add FP32 above to see its value beside it.'
    : `FP32 has ${real(other)}${byte ? `: ${Math.abs(value - off).toFixed(2)} steps away` : ''}.`;
  $('difference').textContent = `INT8 has ${ours}. ${theirs}`;
}

function show() {
  const step = chosenStep();
  showPlaces(step);
  $('products').hidden = $('taps-figure').hidden = !pixel;
  if (pixel) {
    $('step').value = at;
    $('step-note').textContent = `${whole(at)} of ${whole(products.length)}`;
    $('back').disabled = at === 0;
    $('forward').disabled = $('tap-on').disabled = at === products.length;
    for (const part of [showTaps, showRows, showGrowth, showChain]) part(step);
  } else $('chain').replaceChildren(link(step.op, '', words(step.op))); // it has no products
  showDifference(step);
}

function go(to) {
  at = clip(to, 0, products.length);
  show();
}

function recompute() {
  const {layer, channel, y, x} = lab.at, step = chosenStep();
  const explained = kind => lab[kind].explain(lab.runs[kind], layer, y, x, channel);
  pixel = step.gemm ? explained('int8') : null;
  products = pixel ? multiply(pixel) : [];
  fp32 = pixel && lab.runs.fp32 ? multiply(explained('fp32')) : [];
  $('step').max = products.length;
  $('layer').value = layer;
  Object.assign($('channel'), {value: channel, max: step.channels - 1});
  Object.assign($('row'), {value: y, max: step.height - 1});
  Object.assign($('column'), {value: x, max: step.width - 1});
  go(products.length);
}

export function setUp() {
  lab.addEventListener('run', () => {
    $('layer').replaceChildren(...[...lab.runs.int8.steps.keys()].map(name => make('option', {}, name)));
    choose({});
  });
  lab.addEventListener('choice', recompute);
  $('where').onchange = ({target}) => choose({[target.name]: target.value});
  $('plane').onclick = event => choose(placeOf(event, $('plane')));
  onArrows($('plane'), (x, y) => choose({x: lab.at.x + x, y: lab.at.y + y}));
  const tapEnd = () => products[at] ? (products[at].tap + 1) * pixel.inputs[0].x.length : at;
  const targets = {back: () => at - 1, forward: () => at + 1, 'tap-on': tapEnd, all: () => products.length};
  for (const [id, target] of Object.entries(targets)) $(id).onclick = () => go(target());
  $('step').oninput = event => go(Number(event.target.value));
}
