// One machine: both precisions timed in this browser, layer by layer, and what the instructions do.

import {DOTS} from '../engine/kernels.js';
import {$, draw, make, plural} from './dom.js';
import {attempt, lab, nextFrame, stageOf} from './lab.js';

const RUNS = 24; // each lasts some milliseconds; a browser's clock ticks in tenths of one

const ms = value => `${value.toFixed(value < 10 ? 2 : 1)} ms`;

// Time some ways to run a network in turns: [{network, kernels}] to [{layers: Map name -> ms, total}].
async function time(ways) {
  const {pixels, height, width} = lab.picture, found = ways.map(() => []);
  for (let turn = 0; turn <= RUNS; turn++) {
    for (const [i, {network, kernels}] of ways.entries()) {
      const own = network.kernels;
      network.kernels = kernels ?? own;
      const run = network.run(pixels, height, width, {keep: false});
      network.kernels = own;
      if (turn) found[i].push(run); // the first one warms up
    }
    $('measure-note').textContent = `${turn} of ${RUNS} turns`;
    await nextFrame();
  }
  return found.map(summarize);
}

function summarize(runs) {
  const layers = new Map([...runs[0].steps.keys()].map(name => {
    const times = runs.map(run => run.steps.get(name).ms).sort((a, b) => a - b).slice(0, runs.length / 2);
    return [name, times.reduce((a, b) => a + b) / times.length]; // in the others something disturbed it
  }));
  return {layers, total: [...layers.values()].reduce((a, b) => a + b)};
}

function byStage(layers) {
  const sums = new Map();
  for (const [name, value] of layers) {
    const stage = stageOf(name);
    sums.set(stage, (sums.get(stage) ?? 0) + value);
  }
  return sums;
}

function showWaterfall(fp32, int8) {
  const before = byStage(fp32.layers), after = byStage(int8.layers), top = 24, base = 240;
  const columns = [['FP32', 0, fp32.total, 'fp32']];
  let level = fp32.total;
  for (const [stage, value] of before) {
    const saved = value - after.get(stage);
    columns.push([stage, Math.min(level, level - saved), Math.abs(saved), saved < 0 ? 'lost' : 'dim', saved]);
    level -= saved;
  }
  columns.push(['INT8', 0, int8.total, 'int8']);
  const pitch = 900 / columns.length, unit = (base - top) / Math.max(...columns.map(([, from, size]) => from + size));
  $('waterfall').replaceChildren(draw('line', {class: 'axis', x1: 0, x2: 900, y1: base, y2: base}),
    ...columns.flatMap(([name, from, size, kind, saved], i) => {
      const x = i * pitch + pitch / 2, y = base - (from + size) * unit;
      const says = saved === undefined ? ms(size) : `${saved < 0 ? '+' : '−'}${Math.abs(saved).toFixed(1)}`;
      return [draw('rect', {class: `fill ${kind}`, x: x - pitch * 0.36, width: pitch * 0.72, y, height: Math.max(size * unit, 1)}),
        draw('text', {class: 'strong', x, y: y - 6, 'text-anchor': 'middle'}, says),
        draw('text', {x, y: base + 22, 'text-anchor': 'middle'}, name)];
    }));
  const ratio = fp32.total / int8.total;
  $('waterfall-note').textContent = `INT8 is ${ratio.toFixed(2)} times as fast here: ${ms(fp32.total)} in FP32, `
    + `${ms(int8.total)} in INT8, one thread. A column in between is what a stage saves.`;
}

// Bars of milliseconds, so many in a column: rows are [label, [kind, value], ...].
function showBars(element, rows, each = rows.length) {
  const most = Math.max(...rows.flatMap(([, ...kinds]) => kinds.map(([, value]) => value)));
  const bars = part => make('div', {className: 'bars'}, ...part.flatMap(([label, ...kinds]) => [
    make('span', {}, label),
    make('span', {className: 'pair'}, ...kinds.map(([kind, value]) => {
      const bar = make('span', {className: `bar ${kind}`});
      bar.style.width = `${100 * value / most}%`;
      return bar;
    })),
    make('span', {className: 'figures'}, ...kinds.map(([kind, value]) => make('div', {className: `key ${kind}`}, ms(value))))]));
  element.replaceChildren(bars(rows.slice(0, each)), ...(each < rows.length ? [bars(rows.slice(each))] : []));
}

// The rungs that this browser has: the same loops, another instruction in the middle.
function rungs() {
  const {int8, fp32} = lab, {plain, relaxed} = int8.kernels.available, list = [];
  const of = (network, name, conv) => list.push({network, name, kernels: {...network.kernels, conv}});
  if (fp32) of(fp32, 'FP32: f32x4.mul, f32x4.add', fp32.kernels.available.plain.conv_f32);
  if (fp32 && relaxed) of(fp32, 'FP32: relaxed madd, one rounding', fp32.kernels.available.relaxed.conv_f32);
  of(int8, 'INT8: byte by byte, i32x4.mul', plain.conv_bytes);
  of(int8, 'INT8: i32x4.dot_i16x8_s', plain.conv_u8s8);
  if (relaxed) of(int8, 'INT8: relaxed dot, upper bit apart', relaxed.conv_split);
  return list;
}

async function measure() {
  $('measure').disabled = true;
  try {
    const list = rungs(), results = await time(list);
    const bars = list.map(({name}, i) => [name, [name.slice(0, 4).toLowerCase(), results[i].total]]);
    $('ladder').replaceChildren(make('h3', {}, 'A ladder: the same loops, another instruction'), make('div', {}));
    showBars($('ladder').lastChild, bars);
    if (lab.fp32) {
      const [fp32, int8] = await time([{network: lab.fp32}, {network: lab.int8}]);
      $('measured').hidden = false;
      showWaterfall(fp32, int8);
      const rows = [...int8.layers].map(([name, value]) => [name, ['fp32', fp32.layers.get(name)], ['int8', value]]);
      showBars($('times'), rows, Math.ceil(rows.length / 2));
    }
    $('measure-note').textContent = `${plural(RUNS, 'run')} each, in turns; of each layer’s times the quicker half.`
      + (lab.fp32 ? '' : ' Add FP32 above for the waterfall.');
  } finally {
    $('measure').disabled = false;
  }
}

export function setUp() {
  $('measure').onclick = () => attempt(measure);
  lab.addEventListener('run', () => {
    const {kernels} = lab.int8, says = DOTS[kernels.dot];
    $('relaxed').textContent = says
      ? `Your browser has relaxed SIMD, too. Its dot product of bytes may do what is fast on your CPU. Asked for 255 × 127, four times, with the right sum 129,540, it gave ${kernels.dot.toLocaleString('en')}: it ${says}.`
      : 'Your browser has no relaxed SIMD: a dot product of bytes that may differ from CPU to CPU.';
  });
}
