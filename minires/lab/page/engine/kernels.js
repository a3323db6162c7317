// minires's microkernels, compiled to WebAssembly, and which of them this browser has.
import {fetchBytes, LabError} from './fetch.js';

// Fetch the two modules. A browser refuses one whole if it does not know one of its instructions.
export async function fetchKernels() {
  const [plain, relaxed] = await Promise.all(['kernels.wasm', 'relaxed.wasm'].map(name =>
    fetchBytes(new URL(name, import.meta.url))));
  if (!globalThis.WebAssembly?.validate(plain)) throw new LabError(
    'This browser has no WebAssembly with SIMD: Chrome 91, Firefox 89 and Safari 16.4 are the first that do.');
  return {plain, relaxed: WebAssembly.validate(relaxed) ? relaxed : null};
}

// Give them a memory to work in.
export async function startKernels({plain, relaxed}, memory) {
  const start = async code => code && (await WebAssembly.instantiate(code, {env: {memory}})).instance.exports;
  return {plain: await start(plain), relaxed: await start(relaxed)};
}

export const EXACT = 129540;

// What a browser may make of bytes above 127 in its relaxed dot product, by the sum of four 255 * 127.
export const DOTS = {
  [EXACT]: 'takes them as they are',
  65534: 'takes them as they are, but sums of two saturate at 32,767',
  [-508]: 'takes them for negative numbers',
};

// Let it multiply, in a memory that is still empty: one tile of 4 x 8, and one group along K.
export function probeDot(relaxed, memory, at) {
  new Uint8Array(memory.buffer, at, 4).fill(255);
  new Uint8Array(memory.buffer, at + 64, 32).fill(127);
  const zeros = at + 128, sums = at + 192;
  relaxed.sums(at, zeros, at + 64, zeros, zeros, 0, sums, zeros, 1, 1, 0, 1, 1, 1, 32, 0, 0, 0, 0, 0, 0);
  return new Int32Array(memory.buffer, sums, 1)[0];
}

// Choose the functions that compute a layer: {conv, linear, name}. INT8's give the same bits all of
// them; the relaxed dot product is right as it is only where bytes above 127 pass.
export function chooseKernels({plain, relaxed}, precision, wanted, dot) {
  const use = relaxed && (wanted ?? (precision === 'fp32' || dot === EXACT));
  if (precision === 'fp32') {
    const conv = (use ? relaxed : plain).conv_f32;
    return {conv, linear: conv, name: use ? 'f32x4.relaxed_madd' : 'f32x4.mul, f32x4.add'};
  }
  const linear = plain.linear_u8s8, name = 'i32x4.relaxed_dot_i8x16_i7x16_add_s';
  if (!use) return {conv: plain.conv_u8s8, linear, name: 'i32x4.dot_i16x8_s'};
  if (dot === EXACT) return {conv: relaxed.conv_u8s8, linear, name};
  return {conv: relaxed.conv_split, linear, name: `${name}, split`};
}
