// Weights. A safetensors file begins with eight bytes that tell its header's size; the header is
// JSON, and the tensors follow.
// https://github.com/huggingface/safetensors#format
import {LabError} from './fetch.js';

const KINDS = {I8: Int8Array, I32: Int32Array, F32: Float32Array, F16: Uint16Array};

// Read a file of weights: {metadata, tensors: {name: read}}. What it does not hold is an error. A tensor
// is copied when it is read, one at a time, because it may lie where no array can.
export function readWeights(buffer) {
  try {
    const size = Number(new DataView(buffer).getBigUint64(0, true));
    const {__metadata__: metadata = {}, ...header} =
      JSON.parse(new TextDecoder().decode(new Uint8Array(buffer, 8, size)));
    const tensors = {};
    for (const [name, {dtype, data_offsets: [start, end]}] of Object.entries(header)) {
      if (8 + size + end > buffer.byteLength) throw new RangeError(name);
      if (dtype in KINDS) tensors[name] = () => new KINDS[dtype](buffer.slice(8 + size + start, 8 + size + end));
    }
    return {metadata, tensors};
  } catch {
    throw new LabError('These weights are no whole safetensors file: take one that minires reads or writes.');
  }
}

// All 65,536 numbers of 16 bits, as float32: 1 bit of sign, 5 of exponent, 10 of fraction.
let halves;
export function fromHalves(values) {
  halves ??= Float32Array.from({length: 65536}, (_, bits) => {
    const sign = bits >> 15 ? -1 : 1, exponent = bits >> 10 & 31, fraction = bits & 1023;
    if (exponent === 31) return fraction ? NaN : sign * Infinity;
    return sign * (exponent ? (1024 + fraction) * 2 ** (exponent - 25) : fraction * 2 ** -24);
  });
  const floats = new Float32Array(values.length);
  for (let i = 0; i < values.length; i++) floats[i] = halves[values[i]];
  return floats;
}
