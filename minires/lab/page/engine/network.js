// ResNet-50 in a browser. Python has laid the network out: weights/*.json has its layers, buffers and
// steps. This file gives them memory, packs the weights as the microkernels read them, and runs one
// function for each layer.
import {explain} from './explain.js';
import {fetchBytes, fetchJson, LabError} from './fetch.js';
import {chooseKernels, fetchKernels, probeDot, startKernels} from './kernels.js';
import {fp32Weights, int8Weights} from './layers.js';
import {avgpool, epilogueNumbers, maxpool, pixelTable} from './numbers.js';
import {readWeights} from './safetensors.js';

const PAGE = 65536, LINE = 64, STACK = 2 * PAGE; // bytes; the modules keep the first pages for themselves
const LOGITS = -1; // in place of a buffer's number

// Open a network. The source is the address of a .safetensors file or its bytes. The plan lies beside
// the file, with the ending .json, or is given. `relaxed` is true or false to choose the instructions;
// without it the fastest exact ones are taken.
export async function openNetwork(source, {precision = 'int8', onProgress, relaxed, plan} = {}) {
  const codes = await fetchKernels(); // first, because without SIMD all else would be in vain
  plan ??= await fetchJson(String(source).replace(/safetensors$/, 'json'));
  if (plan.precision !== precision) throw new LabError(`This plan is for ${plan.precision}, not for ${precision}.`);
  const file = readWeights(source instanceof ArrayBuffer ? source : await fetchBytes(source, onProgress));
  if (precision === 'int8' && (file.metadata.format !== 'minires-int8' || file.metadata.version !== '2')) {
    throw new LabError('These weights are not INT8 weights of minires: minires quantize makes them.');
  }
  const room = layOut(plan), memory = new WebAssembly.Memory({initial: Math.ceil(room.end / PAGE)});
  const available = await startKernels(codes, memory);
  const dot = available.relaxed && probeDot(available.relaxed, memory, STACK);
  return new Network(plan, file, room, memory, {...chooseKernels(available, precision, relaxed, dot), dot, available});
}

// Give everything in a plan an address, one behind the other, each with room behind it that may be read.
function layOut(plan) {
  let end = STACK;
  const take = bytes => { const at = end; end += Math.ceil(bytes / LINE) * LINE + LINE; return at; };
  const buffers = plan.buffers.map(buffer => take(buffer.values * plan.tiling.item));
  const steps = plan.steps.map(({gemm}) => gemm && {
    w: take(gemm.panels * gemm.panelBytes),
    bias: take(4 * gemm.panels * plan.tiling.columns),
    m: take(4 * gemm.panels * plan.tiling.columns),
    xOffsets: take(4 * offsets(gemm.xOffsets).length),
    yOffsets: take(4 * offsets(gemm.yOffsets).length),
  });
  const last = plan.steps.at(-1).gemm;
  const logits = take(4 * offsets(last.yOffsets).length * last.panels * plan.tiling.columns);
  return {buffers, steps, logits, end};
}

// Tables of offsets come as runs: [first, distance, how many].
const offsets = runs => runs.flatMap(([first, apart, times]) =>
  Array.from({length: times}, (_, i) => first + i * apart));

class Network {
  constructor(plan, file, room, memory, kernels) {
    const {name, categories, preset, size, precision} = plan;
    Object.assign(this, {name, categories, preset, precision, inputSize: size, plan, room, memory, kernels});
    this.int8 = precision === 'int8';
    this.qparams = Object.fromEntries(Object.entries(JSON.parse(file.metadata.qparams ?? '{}'))
      .map(([name, [scale, zeroPoint]]) => [name, {scale: Math.fround(scale), zeroPoint}]));
    this.Value = this.int8 ? Uint8Array : Float32Array; // of an activation
    this.values = new this.Value(memory.buffer);
    plan.buffers.forEach((buffer, i) => this.fill(i, buffer.fill ?? (this.int8 ? 0 : -Infinity)));
    this.steps = plan.steps.map((step, i) =>
      ({...step, inputFrom: step.inputs[0], residualFrom: step.inputs[1], at: room.steps[i]}));
    for (const step of this.steps) if (step.gemm) this.pack(step, file.tensors);
    this.describe(this.qparams);
  }

  address({buffer, offset}) {
    return (buffer === LOGITS ? this.room.logits : this.room.buffers[buffer]) + offset;
  }

  fill(buffer, value) {
    const start = this.room.buffers[buffer] / this.plan.tiling.item;
    this.values.fill(value, start, start + this.plan.buffers[buffer].values);
  }

  // Cut weights into panels of a few output channels, read from front to back: for each group of 32
  // bits along K, one for each channel. Channels in memory that the weights do not have stay zero.
  pack(step, tensors) {
    const {w, bias, scale} = (this.int8 ? int8Weights : fp32Weights)(tensors, step), {gemm, at} = step;
    const packed = this.packed(step), places = this.places(step), sums = new Array(bias.length).fill(0);
    for (let n = 0, from = 0; n < sums.length; n++) {
      const start = this.panel(gemm, n);
      for (let k = 0; k < places.length; k++, from++) {
        packed[start + places[k]] = w[from];
        sums[n] += w[from];
      }
    }
    this.put(Int32Array, at.xOffsets, offsets(gemm.xOffsets));
    this.put(Int32Array, at.yOffsets, offsets(gemm.yOffsets));
    Object.assign(step, {bias, scale, sums}); // as the file has them, and what each channel's weights add up to
  }

  put(Kind, at, values) {
    new Kind(this.memory.buffer, at, values.length).set(values);
  }

  packed({gemm, at}) {
    const Weight = this.int8 ? Int8Array : Float32Array, item = Weight.BYTES_PER_ELEMENT;
    return new Weight(this.memory.buffer, at.w, gemm.panels * gemm.panelBytes / item);
  }

  // Where an output channel's weights begin.
  panel({panelBytes}, n) {
    const {columns, group} = this.plan.tiling;
    return Math.floor(n / columns) * panelBytes / 4 * group + n % columns * group;
  }

  // Where each weight of a channel lies behind that, in the order (row, column, input channel).
  places({kernel, inChannels, inputFrom, gemm}) {
    const {columns, group} = this.plan.tiling;
    const {channels} = this.plan.steps.find(step => step.name === inputFrom);
    return Int32Array.from({length: kernel ** 2 * inChannels}, (_, i) => {
      const row = Math.floor(i / (kernel * inChannels)), column = Math.floor(i / inChannels) % kernel;
      const k = column * channels + i % inChannels; // along a row of the kernel, as pixels lie in memory
      return (row * gemm.groups + Math.floor(k / group)) * columns * group + k % group;
    });
  }

  // One output channel's weights.
  weights(step, n) {
    const packed = this.packed(step), start = this.panel(step.gemm, n);
    return packed.constructor.from(this.places(step), place => packed[start + place]);
  }

  // Compute what each layer needs to know of scales and zero points, and what its function is called with.
  describe(qparams) {
    this.current = qparams;
    this.table = pixelTable(this.preset, qparams.input);
    for (const step of this.steps.filter(step => step.gemm)) {
      const {gemm, at} = step, numbers = step.numbers = epilogueNumbers(this, step, qparams);
      this.put(this.int8 ? Int32Array : Float32Array, at.bias, numbers.bias);
      this.put(Float32Array, at.m, numbers.m);
      step.arguments = [
        this.address(step.x), at.xOffsets, at.w, at.bias, at.m,
        step.residual ? this.address(step.residual) : 0, this.address(step.y), at.yOffsets,
        gemm.runs, gemm.groups, gemm.runStride, gemm.rows, gemm.block, gemm.panels, gemm.panelBytes,
        numbers.residualM, numbers.residualZeroPoint, numbers.low, numbers.high,
        numbers.zeroPoint, numbers.scale,
      ];
    }
  }

  // Run the network on a prepared image, (height, width, 3) bytes. `overrides` gives steps other
  // scales, zero points or bits: {name: {scale, zeroPoint, bits}}. `keep` is false to time the run alone,
  // and `kernels` are other functions to time.
  run(pixels, height, width, {overrides = {}, keep = true, kernels = this.kernels} = {}) {
    if (height !== this.inputSize || width !== this.inputSize || pixels.length !== 3 * height * width) {
      throw new LabError(`The image has ${height} x ${width} pixels; `
        + `this network was laid out for ${this.inputSize} x ${this.inputSize}.`);
    }
    const qparams = {...this.qparams};
    for (const name in overrides) {
      const q = {...qparams[name], ...overrides[name]};
      qparams[name] = {...q, scale: Math.fround(q.scale)};
    }
    if (qparams.conv1) qparams.maxpool = qparams.conv1; // a max-pool picks values, it makes none
    const changed = Object.keys(overrides).length > 0;
    this.anew = changed || this.changed; // or back to what the file has
    this.changed = changed;
    if (this.anew) this.describe(qparams);
    const run = {steps: new Map(), pixels, qparams, logits: null, ms: 0};
    for (const step of this.steps) {
      const started = performance.now();
      this.execute(step, pixels, kernels);
      const ms = performance.now() - started;
      run.ms += ms;
      const data = keep || step.op === 'linear' ? this.read(step) : null;
      const {scale = 1, zeroPoint = 0} = qparams[step.name] ?? {};
      run.steps.set(step.name, {...step, channels: step.outChannels, data, ms, scale, zeroPoint});
    }
    run.logits = run.steps.get('fc').data;
    return run;
  }

  execute(step, pixels, kernels) {
    const {y} = step, buffer = this.plan.buffers[y.buffer], padded = this.int8 && buffer?.pad && buffer.fill !== null;
    // Padding holds the zero point of the output that it surrounds.
    if (this.anew && padded) this.fill(y.buffer, this.current[step.name].zeroPoint);
    if (step.op === 'conv') kernels.conv(...step.arguments);
    else if (step.op === 'linear') kernels.linear(...step.arguments);
    else if (step.op === 'input') this.write(step, pixels);
    else if (step.op === 'maxpool') maxpool(this, step);
    else avgpool(this, step);
  }

  // The pixels through the table: a byte has only 256 values, so each was normalized once.
  write({y, yRow, width}, pixels) {
    const {values, table, plan: {tiling: {item}}} = this, first = this.address(y) / item, row = yRow / item;
    for (let i = 0, at = first; i < pixels.length; at += row - 3 * width) {
      for (const end = i + 3 * width; i < end; i++) values[at++] = table[i % 3][pixels[i]];
    }
  }

  // Copy a step's output out of its buffer: without padding, and without channels that fill up a panel.
  read({op, y, yRow, height, width, channels, outChannels}) {
    if (op === 'linear') return new Float32Array(this.memory.buffer, this.room.logits, outChannels).slice();
    const {values, plan: {tiling: {item}}} = this, first = this.address(y) / item;
    const data = new this.Value(height * width * outChannels);
    for (let i = 0; i < height * width; i++) {
      const from = first + Math.floor(i / width) * yRow / item + i % width * channels;
      data.set(values.subarray(from, from + outChannels), i * outChannels);
    }
    return data;
  }

  explain(run, name, y, x, channel) {
    return explain(this, run, run.steps.get(name), y, x, channel);
  }
}
