// One instruction: lanes of 32 bits, the bytes in them, and what each step makes of these.

import {$, make, renew, whole, words} from './dom.js';

const s16 = value => Math.min(Math.max(value, -32768), 32767);
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
  {name: 'in this browser', of: 'WebAssembly', lanes: 4, counts: '9 instructions, some of them shared by a tile', steps: [
    {name: 'apart', make: ({x}) => [x[0], x[2], x[1], x[3]]},
    {name: 'i32x4.dot_i16x8_s', make: lane => pairs([0, 2, 1, 3].map(i => times(lane)[i]))},
    {name: 'i32x4.add', make: (lane, made) => [lane.sum + made[0] + made[1]]}]},
];

let chosen = INSTRUCTIONS[2], lanes = [], done = 0, at = 0;

function fresh(seed = 1) {
  const random = () => (seed = seed * 48271 % 2147483647) / 2147483647; // Park and Miller's minimal standard
  for (let i = 0; i < 10; i++) random();
  lanes = Array.from({length: 16}, () => ({sum: 0,
    x: Array.from({length: 4}, () => Math.floor(256 * random() ** 2)),
    w: Array.from({length: 4}, () => Math.floor(255 * random()) - 127)}));
  done = 0;
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
  return make('div', {className: kind}, ...values.map((value, i) => make('span', {
    className: value === right[i] ? '' : 'wrong', title: value === right[i] ? '' : `right: ${whole(right[i])}`}, whole(value))));
}

function showLane(lane, i) {
  const used = i < chosen.lanes, count = chosen.float ? 1 : 4, rows = used ? made(lane) : [];
  const button = make('button', {className: `lane ${used ? '' : 'empty'}`, disabled: !used},
    row('x', lane.x.slice(0, count)), row('w', lane.w.slice(0, count)), row('sum', [lane.sum]),
    ...rows.map(({values, right}, k) => row(k === done - 1 ? 'fresh' : '', values, right)));
  button.ariaLabel = `Lane ${i}: ${lane.x.slice(0, count)} times ${lane.w.slice(0, count)}, sum ${lane.sum}`
    + rows.map(({step, values}) => `, ${step.name} ${values}`).join('');
  button.setAttribute('aria-current', i === at);
  button.onclick = () => { at = i; show(); };
  return button;
}

function showBytes() {
  const lane = lanes[at], count = chosen.float ? 1 : 4;
  const field = (key, i, low, high) => {
    const input = make('input', {type: 'number', min: low, max: high, value: lane[key][i], ariaLabel: `${key}, number ${i}`});
    input.onchange = () => {
      lane[key][i] = Math.min(Math.max(Math.trunc(input.value) || 0, low), high);
      input.value = lane[key][i];
      done = 0;
      show(false); // the reader is at the next field already
    };
    return input;
  };
  const fields = (key, name, low, high) => make('span', {className: 'controls'},
    make('strong', {}, `${key}, ${chosen.float ? 'a float' : name}`),
    ...Array.from({length: count}, (_, i) => field(key, i, low, high)));
  $('bytes').replaceChildren(fields('x', 'u8', 0, 255), fields('w', 's8', -128, 127));
}

function show(bytes = true) {
  const step = chosen.steps[done - 1], lost = lanes.slice(0, chosen.lanes).some(lane => made(lane)
    .some(({values, right}) => right?.some((v, i) => v !== values[i])));
  at = Math.min(at, chosen.lanes - 1);
  renew($('instructions'), ...INSTRUCTIONS.map(instruction => {
    const button = make('button', {}, instruction.name);
    button.setAttribute('aria-pressed', instruction === chosen);
    button.onclick = () => { chosen = instruction; again(); };
    return button;
  }));
  $('instruction-says').replaceChildren(step ? words(step.name)
    : `${chosen.of}. Each box is a lane: above x, below it w, then the sum so far. Press step.`,
  lost ? make('strong', {}, ' A sum was cut off: the answer is wrong.') : '');
  const count = chosen.lanes * (chosen.float ? 1 : 4);
  $('instruction-count').textContent = `${count} products by ${chosen.counts}, ${chosen.lanes * 32} bits wide.`;
  if (bytes) showBytes();
  renew($('lanes'), ...lanes.map(showLane));
}

function again() {
  done = 0;
  for (const lane of lanes) lane.sum = 0;
  show();
}

export function setUp() {
  let seed = 1;
  fresh(seed);
  show();
  $('instruction-step').onclick = () => {
    if (done === chosen.steps.length) { // the next bytes would come; here the same ones come again
      for (const lane of lanes.slice(0, chosen.lanes)) lane.sum = made(lane).at(-1).values[0];
      done = 0;
    }
    done++;
    show();
  };
  $('instruction-again').onclick = again;
  $('random').onclick = () => { fresh(++seed); show(); };
  $('saturate').onclick = () => {
    Object.assign(lanes[at], {x: [255, 255, 0, 0], w: [127, 127, 0, 0]});
    again();
  };
}
