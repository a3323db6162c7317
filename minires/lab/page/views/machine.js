// One machine: both precisions timed in this browser, layer by layer, and what the instructions do.

import {DOTS, EXACT} from '../engine/kernels.js';
import {$, barsOf, draw, label, line, make, plural, whole} from './dom.js';
import {attempt, lab, nextFrame, run, stages} from './lab.js';

const RUNS = 24; // each lasts some milliseconds; a browser's clock ticks in tenths of one

const ms = value => `${value.toFixed(value < 10 ? 2 : 1)} ms`;

// Time some ways to run a network, in turns: each gets {layers: Map name -> ms, total}.
async function time(ways) {
  const found = ways.map(() => []);
  for (let turn = 0; turn <= RUNS; turn++) {
    for (const [i, {network, kernels}] of ways.entries()) {
      const timed = run(network, {keep: false, kernels});
      if (turn) found[i].push(timed); // the first one warms up
    }
    $('measure-note').textContent = `${turn} of ${RUNS} turns`;
    await nextFrame();
  }
  return found.map(summarize);
}

function summarize(runs) {
  const layers = new Map([...runs[0].steps.keys()].map(name => {
    const times = runs.map(run => run.steps.get(name).ms).sort((a, b) => a - b).slice(0, runs.length * 3 / 4);
    return [name, times.reduce((a, b) => a + b) / times.length]; // in the others something disturbed it
  }));
  return {layers, total: [...layers.values()].reduce((a, b) => a + b)};
}

function showWaterfall(fp32, int8) {
  const top = 24, base = 240, columns = [['FP32', 0, fp32.total, 'fp32']];
  let level = fp32.total;
  for (const [stage, steps] of Object.entries(stages())) {
    const saved = steps.reduce((sum, {name}) => sum + fp32.layers.get(name) - int8.layers.get(name), 0);
    columns.push([stage, Math.min(level, level - saved), Math.abs(saved), saved < 0 ? 'lost' : 'dim', saved]);
    level -= saved;
  }
  columns.push(['INT8', 0, int8.total, 'int8']);
  const pitch = 900 / columns.length, unit = (base - top) / Math.max(...columns.map(([, from, size]) => from + size));
  $('waterfall').replaceChildren(line('axis', 0, base, 900, base),
    ...columns.flatMap(([name, from, size, kind, saved], i) => {
      const x = i * pitch + pitch / 2, y = base - (from + size) * unit, height = Math.max(size * unit, 1);
      const says = saved === undefined ? ms(size) : `${saved < 0 ? '+' : '−'}${Math.abs(saved).toFixed(1)}`;
      return [draw('rect', {class: `fill ${kind}`, x: x - pitch * 0.36, width: pitch * 0.72, y, height}),
        label(says, x, y - 6, 'middle', 'strong'), label(name, x, base + 22, 'middle')];
    }));
  const ratio = fp32.total / int8.total;
  $('waterfall-note').textContent = `INT8 is ${ratio.toFixed(2)} times as fast here: ${ms(fp32.total)} in FP32, `
    + `${ms(int8.total)} in INT8, one thread. A column in between is what a stage saves.`;
}

// The rungs that this browser has: the same loops, another instruction in the middle.
function rungs() {
  const {int8, fp32} = lab, exact = int8.kernels.dot === EXACT;
  const all = [
    [fp32, 'FP32: f32x4.mul, f32x4.add', 'plain', 'conv_f32'],
    [fp32, 'FP32: f32x4.relaxed_madd', 'relaxed', 'conv_f32'],
    [int8, 'INT8: byte by byte, i32x4.mul', 'plain', 'conv_bytes'],
    [int8, 'INT8: i32x4.dot_i16x8_s', 'plain', 'conv_u8s8'],
    [int8, exact ? 'INT8: relaxed dot' : 'INT8: relaxed dot, split', 'relaxed', exact ? 'conv_u8s8' : 'conv_split'],
  ];
  return all.filter(([network, , module]) => network?.kernels.available[module]).map(([network, name, module, conv]) =>
    ({network, name, kernels: {...network.kernels, conv: network.kernels.available[module][conv]}}));
}

function compare(fp32, int8) {
  $('measured').hidden = false;
  showWaterfall(fp32, int8);
  const most = Math.max(...fp32.layers.values(), ...int8.layers.values()), half = Math.ceil(int8.layers.size / 2);
  const timed = (kind, time) => [kind, time / most, ms(time)];
  const rows = [...int8.layers].map(([name, time]) =>
    [name, timed('fp32', fp32.layers.get(name)), timed('int8', time)]);
  $('times').replaceChildren(barsOf(rows.slice(0, half)), barsOf(rows.slice(half)));
}

async function measure() {
  const list = rungs(), results = await time(list), most = Math.max(...results.map(({total}) => total));
  const rows = results.map(({total}, i) => [list[i].name, [list[i].network.precision, total / most, ms(total)]]);
  $('ladder').replaceChildren(make('h3', {}, 'A ladder: the same loops, another instruction'), barsOf(rows));
  const usual = network => results[list.findIndex(way => way.kernels.conv === network.kernels.conv)];
  if (lab.fp32) compare(usual(lab.fp32), usual(lab.int8));
  $('measure-note').textContent = `${plural(RUNS, 'run')} each, in turns; of each layer’s times the slowest `
    + `quarter left out.${lab.fp32 ? '' : ' Add FP32 above for the waterfall.'}`;
}

export function setUp() {
  $('measure').onclick = () => attempt(measure, $('measure'));
  lab.addEventListener('run', () => {
    const {kernels} = lab.int8, says = DOTS[kernels.dot];
    if (says) $('relaxed').textContent = 'Your browser has relaxed SIMD, too. Its dot product of bytes may do what '
      + `is fast on your CPU. Four times 255 × 127 is ${whole(EXACT)}. Your browser says ${whole(kernels.dot)}. `
      + `With bytes above 127 it ${says}.`;
  });
}
