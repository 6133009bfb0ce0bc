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
  const feeds = { x: new ort.Tensor("float32", x.data, [1, x.height, x.width, x.channels]) };
  if (about.sizes) {
    const padded = fit(x, ...about.grid);
    feeds.x = new ort.Tensor("float32", padded.data, [1, padded.height, padded.width, padded.channels]);
    feeds.sizes = new ort.Tensor("int64", BigInt64Array.of(BigInt(x.height), BigInt(x.width)), [1, 2]);
  }
  const start = performance.now();
  const { y } = await session.run(feeds);
  const milliseconds = performance.now() - start;
  if (y.dims.length === 2) return { milliseconds, y: grid(0, 0, y.dims[1], y.data) };
  let result = grid(y.dims[1], y.dims[2], y.dims[3], y.data);
  if (about.sizes) {
    const [down, across] = [about.grid[0] / result.height, about.grid[1] / result.width];
    result = fit(result, Math.ceil(x.height / down), Math.ceil(x.width / across));
  }
  return { milliseconds, y: result };
}

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
