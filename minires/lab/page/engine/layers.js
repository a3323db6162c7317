// A layer's weights as the GEMM wants them: (N, K), a row for each output channel, K as in OHWI.
import {LabError} from './fetch.js';
import {fromHalves} from './safetensors.js';

const EPS = 1e-5; // torchvision's, in every BatchNorm

function find(tensors, name, length) {
  const values = tensors[name]?.();
  if (values?.length === length) return values instanceof Uint16Array ? fromHalves(values) : values;
  throw new LabError(`These weights are not of this network of minires: ${name} is missing or of another size.`);
}

// INT8 lies in the file as it is used: weights, a scale for each channel, a bias in steps.
export function int8Weights(tensors, layer) {
  const {name, kernel, inChannels, outChannels} = layer;
  return {
    w: find(tensors, `${name}.w_s8`, outChannels * kernel ** 2 * inChannels),
    scale: find(tensors, `${name}.w_scale`, outChannels),
    bias: find(tensors, `${name}.bias_s32`, outChannels),
  };
}

// FP32 comes as torchvision has it: OIHW, and a BatchNorm beside each convolution. Its factor goes
// into the weights, in float64, and is rounded once: equation 4.1 of the book.
export function fp32Weights(tensors, layer) {
  const {name, kernel, inChannels, outChannels} = layer, taps = kernel ** 2;
  const oihw = find(tensors, `${name}.weight`, outChannels * taps * inChannels);
  if (layer.op === 'linear') return {w: oihw, bias: find(tensors, `${name}.bias`, outChannels)};
  const norm = name.includes('downsample') ? name.replace(/0$/, '1') : name.replace('conv', 'bn');
  const [gamma, beta, mean, variance] = ['weight', 'bias', 'running_mean', 'running_var']
    .map(part => find(tensors, `${norm}.${part}`, outChannels));
  const w = new Float32Array(oihw.length), bias = new Float32Array(outChannels);
  for (let n = 0, at = 0; n < outChannels; n++) {
    const factor = gamma[n] / Math.sqrt(variance[n] + EPS);
    bias[n] = beta[n] - mean[n] * factor;
    for (let tap = 0; tap < taps; tap++) {
      for (let c = 0; c < inChannels; c++) w[at++] = oihw[(n * inChannels + c) * taps + tap] * factor;
    }
  }
  return {w, bias};
}
