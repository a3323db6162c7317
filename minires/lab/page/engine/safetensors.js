// Weights: fetched with a bar, and read where they lie. A safetensors file begins with eight bytes
// that tell its header's size; the header is JSON, and the tensors follow.
// https://github.com/huggingface/safetensors#format
import {LabError} from './errors.js';

const KINDS = {I8: Int8Array, I32: Int32Array, F32: Float32Array, F16: Uint16Array};

// Fetch a file. onProgress is told its share that is there, from 0 to 1, if the server says how long it is.
export async function fetchBytes(url, onProgress = () => {}) {
  const whole = {total: 0, got: 0, pieces: []};
  try {
    const answer = await fetch(url);
    if (!answer.ok) throw new LabError(`${url} is not there: the server says ${answer.status}.`);
    whole.total = Number(answer.headers.get('Content-Length') ?? 0);
    const reader = answer.body.getReader();
    for (let part = await reader.read(); !part.done; part = await reader.read()) {
      whole.pieces.push(part.value);
      whole.got += part.value.length;
      if (whole.total) onProgress(Math.min(whole.got / whole.total, 1));
    }
  } catch (error) {
    if (error instanceof LabError) throw error;
    throw new LabError(`${url} broke off after ${whole.got} bytes: load the page again.`);
  }
  const bytes = new Uint8Array(whole.got);
  whole.pieces.reduce((at, piece) => (bytes.set(piece, at), at + piece.length), 0);
  return bytes.buffer;
}

// Read a file of weights: {metadata, tensors: {name: {shape, values}}}. What it does not hold is an error.
export function readWeights(buffer) {
  try {
    const size = Number(new DataView(buffer).getBigUint64(0, true));
    const {__metadata__: metadata = {}, ...header} =
      JSON.parse(new TextDecoder().decode(new Uint8Array(buffer, 8, size)));
    const tensors = {};
    for (const [name, {dtype, shape, data_offsets: [start, end]}] of Object.entries(header)) {
      if (dtype in KINDS) tensors[name] = {shape, values: view(buffer, KINDS[dtype], 8 + size + start, end - start)};
    }
    return {metadata, tensors};
  } catch {
    throw new LabError('These weights are no whole safetensors file: take one that minires reads or writes.');
  }
}

function view(buffer, Kind, start, length) {
  const size = Kind.BYTES_PER_ELEMENT;
  if (start % size) return new Kind(buffer.slice(start, start + length)); // a view has to be aligned
  return new Kind(buffer, start, length / size);
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
