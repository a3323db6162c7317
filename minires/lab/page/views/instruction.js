// One instruction: lanes of 32 bits, the bytes in them, and what each step makes of these.

import {clip} from '../engine/numbers.js';
import {$, make, renew, whole, words} from './dom.js';

const s16 = value => clip(value, -32768, 32767);
const times = ({x, w}) => x.map((v, i) => v * w[i]);
const pairs = values => [values[0] + values[1], values[2] + values[3]];
const total = values => [values.reduce((x, y) => x + y)];

// A step takes a lane {x, w, sum} and what the step before made of it. `right` is what it would be
// without saturation. index.html says in words what a step does.
const add = {name: 'vpaddd', make: (lane, made) => [lane.sum + made[0]]};
const INSTRUCTIONS = [
  {name: 'FMA', of: 'vfmadd231ps, AVX-512', lanes: 16, float: true, counts: '1 instruction', steps: [
    {name: 'vfmadd231ps', make: lane => [lane.sum + lane.x[0] * lane.w[0]]}]},
  {name: 'before VNNI', of: 'three instructions, AVX-512', lanes: 16, counts: '3 instructions', steps: [
    {name: 'vpmaddubsw', make: lane => pairs(times(lane)).map(s16), right: lane => pairs(times(lane))},
    {name: 'vpmaddwd', make: (lane, made) => total(made)}, add]},
  {name: 'vpdpbusd', of: 'VNNI, AVX-512', lanes: 16, counts: '1 instruction', steps: [
    {name: 'vpdpbusd', make: lane => [lane.sum + total(times(lane))[0]]}]},
  {name: 'sdot', of: 'Neon, 64-bit ARM', lanes: 4, counts: '2 instructions', steps: [
    {name: 'eor', make: lane => lane.x.map(v => v - 128)},
    {name: 'sdot', make: ({w, sum}, made) => [sum + total(times({x: made, w}))[0]]},
    {name: 'the bias', make: (lane, made) => [made[0] + 128 * total(lane.w)[0]]}]},
  {name: 'in this browser', of: 'WebAssembly', lanes: 4, counts: '9 instructions, some shared by a tile', steps: [
    {name: 'apart', make: ({x}) => [x[0], x[2], x[1], x[3]]},
    {name: 'i32x4.dot_i16x8_s', make: lane => pairs([0, 2, 1, 3].map(i => times(lane)[i]))},
    {name: 'i32x4.add', make: (lane, made) => [lane.sum + made[0] + made[1]]}]},
];

let chosen = INSTRUCTIONS[2], lanes = [], done = 0, at = 0;

function fresh() {
  const four = byte => Array.from({length: 4}, () => Math.floor(byte(Math.random())));
  lanes = Array.from({length: 16}, () => ({sum: 0, x: four(v => 256 * v ** 2), w: four(v => 255 * v - 127)}));
  again();
}

// All that the steps so far have made of a lane: [{step, values, right}].
function made(lane) {
  const rows = [];
  for (const step of chosen.steps.slice(0, done)) {
    const before = rows.at(-1)?.values;
    rows.push({step, values: step.make(lane, before), right: step.right?.(lane, before)});
  }
  return rows;
}

function row(kind, values, right = values) {
  return make('div', {className: kind}, ...values.map((value, i) => value === right[i]
    ? make('span', {}, whole(value))
    : make('span', {className: 'wrong', title: `right: ${whole(right[i])}`}, whole(value))));
}

const operands = ({x, w}) => chosen.float ? [x.slice(0, 1), w.slice(0, 1)] : [x, w];

function showLane(lane, i) {
  const used = i < chosen.lanes, [x, w] = operands(lane), rows = used ? made(lane) : [];
  return make('button', {
    className: `lane ${used ? '' : 'empty'}`,
    disabled: !used,
    ariaLabel: [`Lane ${i}: ${x} times ${w}, sum ${lane.sum}`,
      ...rows.map(({step, values}) => `${step.name} ${values}`)].join(', '),
    ariaCurrent: i === at,
    onclick: () => { at = i; show(); },
  }, row('x', x), row('w', w), row('sum', [lane.sum]),
  ...rows.map(({values, right}, k) => row(k === done - 1 ? 'fresh' : '', values, right)));
}

function showBytes() {
  const [x, w] = operands(lanes[at]);
  const field = (key, i, value, min, max) => make('input', {
    type: 'number', min, max, value, ariaLabel: `${key}, number ${i}`,
    onchange({target}) {
      lanes[at][key][i] = target.value = clip(Math.trunc(target.value) || 0, min, max);
      done = 0;
      show(false); // the reader is at the next field already
    },
  });
  const fields = (key, values, name, min, max) => make('span', {className: 'controls'},
    make('strong', {}, `${key}, ${chosen.float ? 'a float' : name}`),
    ...values.map((value, i) => field(key, i, value, min, max)));
  $('bytes').replaceChildren(fields('x', x, 'u8', 0, 255), fields('w', w, 's8', -128, 127));
}

function show(bytes = true) {
  const step = chosen.steps[done - 1], count = chosen.lanes * (chosen.float ? 1 : 4);
  at = Math.min(at, chosen.lanes - 1);
  renew($('instructions'), ...INSTRUCTIONS.map(instruction => make('button', {
    ariaPressed: instruction === chosen,
    onclick: () => { chosen = instruction; again(); },
  }, instruction.name)));
  if (bytes) showBytes();
  renew($('lanes'), ...lanes.map(showLane));
  $('instruction-says').replaceChildren(step ? words(step.name)
    : `${chosen.of}. Each box is a lane: above x, below it w, then the sum so far. Press step.`,
  document.querySelector('#lanes .wrong') ? make('strong', {}, ' A sum was cut off: the answer is wrong.') : '');
  $('instruction-count').textContent = `${count} products by ${chosen.counts}, ${chosen.lanes * 32} bits wide.`;
}

function again() {
  done = 0;
  for (const lane of lanes) lane.sum = 0;
  show();
}

export function setUp() {
  fresh();
  $('instruction-step').onclick = () => {
    if (done === chosen.steps.length) { // the next bytes would come; here the same ones come again
      for (const lane of lanes.slice(0, chosen.lanes)) lane.sum = made(lane).at(-1).values[0];
      done = 0;
    }
    done++;
    show();
  };
  $('instruction-again').onclick = again;
  $('random').onclick = fresh;
  $('saturate').onclick = () => {
    Object.assign(lanes[at], {x: [255, 255, 0, 0], w: [127, 127, 0, 0]});
    again();
  };
}
