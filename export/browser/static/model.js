// The exported model under ONNX Runtime's WebAssembly build, on one thread: more would need the server to send
// cross-origin isolation headers, which a plain static server does not.
import * as ort from "./ort/ort.wasm.bundle.min.mjs";

ort.env.wasm.numThreads = 1;
ort.env.wasm.wasmPaths = { wasm: new URL("./ort/ort-wasm-simd-threaded.wasm", import.meta.url).href };
ort.env.logLevel = "error";

// A grid of numbers: data is a Float32Array in C order of (height, width, channels).
export const grid = (height, width, channels, data = new Float32Array(height * width * channels)) => ({
  height, width, channels, data,
});

export async function load() {
  const about = await (await found("model.json")).json();
  const bytes = new Uint8Array(await (await found("model.onnx")).arrayBuffer());
  const session = await ort.InferenceSession.create(bytes, { executionProviders: ["wasm"], logSeverityLevel: 3 });
  return { about, predict: (x) => predict(session, about, x) };
}

async function found(name) {
  const response = await fetch(name);
  if (!response.ok) throw new Error(`${name} cannot be loaded: the server says ${response.status} ${response.statusText}`);
  return response;
}

// The prediction for a grid, as a grid, or as one of height 0 if the model gives one answer for all of it.
async function predict(session, about, x) {
  const whole = about.sizes ? fit(x, ...about.grid) : x;
  const area = [whole.height, whole.width];
  const last = about.channelsLast;
  const feeds = { x: new ort.Tensor("float32", last ? whole.data : turn(whole.data, x.channels),
    last ? [1, ...area, x.channels] : [1, x.channels, ...area]) };
  if (about.sizes) feeds.sizes = new ort.Tensor("int64", BigInt64Array.of(BigInt(x.height), BigInt(x.width)), [1, 2]);
  const start = performance.now();
  const { y } = await session.run(feeds);
  const milliseconds = performance.now() - start;
  if (!about.window) return { milliseconds, y: grid(0, 0, y.data.length, y.data) };
  const result = last ? grid(...y.dims.slice(1), y.data)
    : grid(y.dims[2], y.dims[3], y.dims[1], turn(y.data, y.dims[2] * y.dims[3]));
  const size = [Math.ceil(x.height / about.window[0]), Math.ceil(x.width / about.window[1])];
  return { milliseconds, y: about.sizes ? fit(result, ...size) : result };
}

// Rows of so many numbers, as its columns.
const turn = (data, count) =>
  data.map((_, k) => data[(k % (data.length / count)) * count + Math.floor(k / (data.length / count))]);

// As much of a grid as fits into another size; what lies beyond it is 0.
export function fit(x, height, width) {
  const result = grid(height, width, x.channels);
  const row = Math.min(width, x.width) * x.channels;
  for (let r = 0; r < Math.min(height, x.height); r++) {
    const from = r * x.width * x.channels;
    result.data.set(x.data.subarray(from, from + row), r * width * x.channels);
  }
  return result;
}
