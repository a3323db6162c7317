// The small arithmetic of quantization and of the pools, as minires/reference.py defines it. float32
// rounds after every operation: `f` does that, for JavaScript computes in float64.
export const f = Math.fround;

// Round half to even: Math.round rounds half up.
export function rint(value) {
  const rounded = Math.round(value);
  return rounded - value === 0.5 && rounded % 2 ? rounded - 1 : rounded;
}

export const clip = (value, low, high) => Math.min(Math.max(value, low), high);

// The limits of what is rounded to a step: from 0 to 255, or to less if a reader takes bits away.
const limits = ({zeroPoint, bits = 8}) => [-zeroPoint, 2 ** bits - 1 - zeroPoint];

// The last way of every INT8 value: clip, round, add the zero point.
export function toStep(scaled, q) {
  const clipped = clip(scaled, ...limits(q)), rounded = rint(clipped);
  return {scaled, clipped, rounded, value: rounded + q.zeroPoint};
}

// What each byte of each colour becomes: a real number, and in INT8 a step.
export function pixelTable({mean, std}, q) {
  return mean.map((_, c) => Float32Array.from({length: 256}, (_, byte) => {
    const real = f(f(f(byte / 255) - f(mean[c])) / f(std[c]));
    return q ? toStep(f(real / q.scale), q).value : real;
  }));
}

// Bias, multipliers and limits of a layer's epilogue.
export function epilogueNumbers(network, step, qparams) {
  const {bias, scale} = step;
  if (!network.int8) {
    const low = step.relu ? 0 : -Infinity;
    return {bias, m: [], residualM: 1, residualZeroPoint: 0, low, high: Infinity, zeroPoint: 0, scale: 1};
  }
  const x = qparams[step.inputFrom], y = qparams[step.name], residual = qparams[step.residualFrom];
  const [low, high] = y ? limits(y) : [-Infinity, Infinity];
  return {
    bias: rebias(step, network.qparams[step.inputFrom], x),
    m: scale.map(s => y ? f(f(x.scale * s) / y.scale) : f(x.scale * s)),
    residualM: residual ? f(residual.scale / y.scale) : 0,
    residualZeroPoint: residual?.zeroPoint ?? 0,
    low, high,
    zeroPoint: y?.zeroPoint ?? 0,
    scale: y?.scale ?? 1,
  };
}

// The bias counts in steps of x's scale, and has x's zero point taken off: equation 5.4. Where a reader
// has changed these, it is made anew as minires/quantize/convert.py would make it.
function rebias({bias, scale, sums}, old, x) {
  if (x.scale === old.scale && x.zeroPoint === old.zeroPoint) return bias;
  return bias.map((steps, n) => {
    const real = (steps + old.zeroPoint * sums[n]) * (old.scale * scale[n]);
    return rint(real / (x.scale * scale[n])) - x.zeroPoint * sums[n];
  });
}

// The largest value under a window, channel by channel; the padding never wins.
export function maxpool(network, step) {
  const {values, plan: {tiling: {item}}} = network, {channels, height, width, kernel, stride} = step;
  const xRow = step.xRow / item, yRow = step.yRow / item;
  const x = network.address(step.x) / item, y = network.address(step.y) / item;
  const taps = Array.from({length: kernel ** 2}, (_, i) => Math.floor(i / kernel) * xRow + i % kernel * channels);
  for (let i = 0; i < height; i++) {
    for (let j = 0; j < width; j++) {
      const from = x + i * stride * xRow + j * stride * channels, to = y + i * yRow + j * channels;
      for (let c = 0; c < channels; c++) {
        let largest = values[from + c];
        for (const tap of taps) if (values[from + tap + c] > largest) largest = values[from + tap + c];
        values[to + c] = largest;
      }
    }
  }
}

// The mean over all pixels. In INT8 the division by their number is part of the multiplier.
export function avgpool(network, step) {
  const {values, plan: {tiling: {item}}, current} = network, {channels, inHeight, inWidth} = step;
  const from = network.address(step.x) / item, to = network.address(step.y) / item, pixels = inHeight * inWidth;
  const x = current[step.inputFrom], y = current[step.name], multiplier = y && f(x.scale / f(y.scale * pixels));
  for (let c = 0; c < channels; c++) {
    let sum = 0;
    for (let i = 0; i < pixels; i++) sum = f(sum + values[from + i * channels + c]); // exact for bytes
    values[to + c] = y ? toStep(f((sum - pixels * x.zeroPoint) * multiplier), y).value : f(sum / pixels);
  }
}
