// One value of a convolution or of the classifier, step by step: everything that went into it. It is
// computed anew here, product by product, from the inputs that a run has kept.
// inputs        where the kernel lies, tap by tap: {ky, kx, inside, x, w}. x has the values of all
//               channels there, the zero point where it is outside, and w the weights they meet
// bias, sum     the sum begins with the bias, and ends with all products added
// multiplier    brings the sum to the output's scale; residual: {q, zeroPoint, multiplier} joins it there
// scaled, clipped, rounded, zeroPoint, value      the way to eight bits; real is what the value stands for
import {f, toStep} from './numbers.js';

export function explain(network, run, step, y, x, channel) {
  const {int8} = network, {bias: biases, m, residualM, residualZeroPoint} = step.numbers, bias = biases[channel];
  const inputs = windowOf(network, step, run.steps.get(step.inputFrom), y, x, channel);
  const add = int8 ? (sum, product) => sum + product : (sum, product) => f(sum + f(product));
  let sum = int8 ? bias : 0; // float32 adds its bias last
  for (const tap of inputs) for (let k = 0; k < tap.x.length; k++) sum = add(sum, tap.x[k] * tap.w[k]);
  if (!int8) sum = f(sum + bias);
  const multiplier = int8 ? m[channel] : null, shortcut = run.steps.get(step.residualFrom);
  let scaled = int8 ? f(f(sum) * multiplier) : sum, residual = null;
  if (shortcut) {
    const q = shortcut.data[(y * shortcut.width + x) * shortcut.channels + channel];
    residual = {q, zeroPoint: residualZeroPoint, multiplier: residualM};
    scaled = f(scaled + f((q - residualZeroPoint) * residualM));
  }
  const q = run.qparams[step.name], real = step.relu ? Math.max(scaled, 0) : scaled;
  const last = q ? toStep(scaled, q) : {scaled, clipped: real, rounded: real, value: real};
  return {inputs, bias, sum, multiplier, residual, zeroPoint: step.zeroPoint, ...last,
    real: q ? f(q.scale * (last.value - q.zeroPoint)) : real};
}

// The taps of a kernel on the input, with one output channel's weights.
function windowOf(network, step, from, y, x, channel) {
  const {kernel, stride, padding} = step, weights = network.weights(step, channel), inputs = [];
  for (let ky = 0; ky < kernel; ky++) {
    for (let kx = 0; kx < kernel; kx++) {
      const row = y * stride + ky - padding, column = x * stride + kx - padding;
      const inside = row >= 0 && row < from.height && column >= 0 && column < from.width;
      const at = (row * from.width + column) * from.channels, tap = (ky * kernel + kx) * from.channels;
      inputs.push({
        ky, kx, inside, w: weights.subarray(tap, tap + from.channels),
        x: inside ? from.data.subarray(at, at + from.channels) : new network.Value(from.channels).fill(from.zeroPoint),
      });
    }
  }
  return inputs;
}
