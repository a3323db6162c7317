// One value, step by step: everything that went into one pixel of one channel. It is computed anew
// here, product by product, from the inputs that a run has kept.
//
// inputs        where the kernel lies, tap by tap: {ky, kx, inside, row, column, x, w}. x has the values
//               of all channels there, the zero point where it is outside, and w the weights they meet
// bias, sum     the sum begins with the bias, and ends with all products added
// multiplier    brings the sum to the output's scale; residual: {q, zeroPoint, multiplier} joins it there
// scaled, clipped, rounded, zeroPoint, value      the way to eight bits; real is what the value stands for
import {averageInt8, f, normalize, toStep} from './numbers.js';

export function explain(network, run, step, y, x, channel) {
  const from = run.steps.get(step.inputFrom), q = run.qparams[step.name];
  const inputs = from ? windowOf(network, step, from, y, x, channel) : [];
  const told = step.op === 'input' ? ofPixel(network, run, y, x, channel)
    : step.op === 'maxpool' ? {value: Math.max(...inputs.filter(tap => tap.inside).map(tap => tap.x[channel]))}
    : step.op === 'avgpool' ? average(network, run, step, inputs, channel)
    : convolve(network, run, step, inputs, y, x, channel);
  const real = network.int8 && q ? f(q.scale * (told.value - q.zeroPoint)) : told.value;
  return {inputs, bias: 0, multiplier: null, residual: null, zeroPoint: q?.zeroPoint ?? 0, real, ...told};
}

// The taps of a kernel on the input. A pool sees one channel, a convolution all of them, with weights.
function windowOf(network, step, from, y, x, channel) {
  const {op, kernel, stride, padding, gemm} = step, weights = gemm && network.weights(step, channel);
  const [height, width] = op === 'avgpool' ? [from.height, from.width] : [kernel, kernel], inputs = [];
  for (let ky = 0; ky < height; ky++) {
    for (let kx = 0; kx < width; kx++) {
      const row = y * stride + ky - padding, column = x * stride + kx - padding;
      const inside = row >= 0 && row < from.height && column >= 0 && column < from.width;
      const at = (row * from.width + column) * from.channels, tap = (ky * width + kx) * from.channels;
      inputs.push({
        ky, kx, inside, row, column,
        x: inside ? from.data.subarray(at, at + from.channels) : new network.Value(from.channels).fill(from.zeroPoint),
        w: weights?.subarray(tap, tap + from.channels) ?? null,
      });
    }
  }
  return inputs;
}

function convolve(network, run, step, inputs, y, x, channel) {
  const {int8} = network, {numbers} = run.steps.get(step.name), bias = numbers.bias[channel];
  const add = int8 ? (sum, product) => sum + product : (sum, product) => f(sum + f(product));
  let sum = int8 ? bias : 0; // float32 adds its bias last
  for (const tap of inputs) for (let k = 0; k < tap.x.length; k++) sum = add(sum, tap.x[k] * tap.w[k]);
  const shortcut = run.steps.get(step.residualFrom) ?? null;
  const q = shortcut?.data[(y * shortcut.width + x) * shortcut.channels + channel];
  if (!int8) {
    sum = f(sum + bias);
    const scaled = shortcut ? f(sum + q) : sum, value = step.relu ? Math.max(scaled, 0) : scaled;
    return {bias, sum, residual: shortcut && {q, zeroPoint: 0, multiplier: 1}, scaled, ...asItIs(value)};
  }
  const multiplier = numbers.m[channel], {residualM, residualZeroPoint} = numbers;
  let scaled = f(f(sum) * multiplier);
  if (step.op === 'linear') return {bias, sum, multiplier, scaled, ...asItIs(scaled)};
  if (shortcut) scaled = f(scaled + f((q - residualZeroPoint) * residualM));
  const residual = shortcut && {q, zeroPoint: residualZeroPoint, multiplier: residualM};
  return {bias, sum, multiplier, residual, ...toStep(scaled, run.qparams[step.name])};
}

const asItIs = value => ({clipped: value, rounded: value, value}); // where nothing is rounded

function average(network, run, step, inputs, channel) {
  const sum = inputs.reduce((sum, tap) => f(sum + tap.x[channel]), 0);
  return network.int8 ? averageInt8(run.qparams, step, sum, inputs.length) : {sum, value: f(sum / inputs.length)};
}

// The first step reads a byte of the photograph: it is normalized, and divided by the scale.
function ofPixel({preset: {mean, std}}, run, y, x, channel) {
  const byte = run.pixels[(y * run.steps.get('input').width + x) * 3 + channel], q = run.qparams.input;
  const normalized = normalize(byte, mean[channel], std[channel]);
  return {byte, normalized, ...(q ? toStep(f(normalized / q.scale), q) : {value: normalized})};
}
