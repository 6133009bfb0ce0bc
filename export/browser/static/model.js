// Runs the exported model with ONNX Runtime's WebAssembly build, on one thread. Several threads require
// cross-origin isolation headers, which a plain static server does not send.
import * as ort from "./ort/ort.wasm.bundle.min.mjs";

ort.env.wasm.numThreads = 1;
ort.env.wasm.wasmPaths = { wasm: new URL("./ort/ort-wasm-simd-threaded.wasm", import.meta.url).href };
ort.env.logLevel = "error";

// A grid of numbers; data is a Float32Array of shape (height, width, channels) in C order.
export const makeGrid = (height, width, channels, data = new Float32Array(height * width * channels)) => ({
  height, width, channels, data,
});

// Loads the model; returns the content of model.json and a function that predicts.
export async function loadModel() {
  const info = await (await fetchFile("model.json")).json();
  const bytes = new Uint8Array(await (await fetchFile("model.onnx")).arrayBuffer());
  const session = await ort.InferenceSession.create(bytes, { executionProviders: ["wasm"], logSeverityLevel: 3 });
  return { info, predict: (x) => predict(session, info, x) };
}

async function fetchFile(name) {
  const response = await fetch(name);
  if (!response.ok) throw new Error(`cannot load ${name}: the server answered ${response.status} ${response.statusText}`);
  return response;
}

// The prediction for a grid, as a grid. If the model returns one vector for the whole grid, the result has
// height 0 and the vector as its data.
async function predict(session, info, x) {
  const padded = info.sizes ? cropOrPad(x, ...info.grid) : x;
  const extents = [padded.height, padded.width];
  const { channelsLast } = info;
  const feeds = { x: new ort.Tensor("float32", channelsLast ? padded.data : transpose(padded.data, x.channels),
    channelsLast ? [1, ...extents, x.channels] : [1, x.channels, ...extents]) };
  if (info.sizes) feeds.sizes = new ort.Tensor("int64", BigInt64Array.of(BigInt(x.height), BigInt(x.width)), [1, 2]);
  const start = performance.now();
  const { y } = await session.run(feeds);
  const milliseconds = performance.now() - start;
  if (!info.window) return { milliseconds, y: makeGrid(0, 0, y.data.length, y.data) };
  const result = channelsLast ? makeGrid(...y.dims.slice(1), y.data)
    : makeGrid(y.dims[2], y.dims[3], y.dims[1], transpose(y.data, y.dims[2] * y.dims[3]));
  const validSize = [Math.ceil(x.height / info.window[0]), Math.ceil(x.width / info.window[1])];
  return { milliseconds, y: info.sizes ? cropOrPad(result, ...validSize) : result };
}

// Transposes a flat matrix with the given number of columns.
function transpose(data, columns) {
  const rows = data.length / columns;
  return data.map((_, k) => data[(k % rows) * columns + Math.floor(k / rows)]);
}

// A grid in another size: rows and columns are cut off at the end, or zeros are added there.
export function cropOrPad(x, height, width) {
  const result = makeGrid(height, width, x.channels);
  const rowLength = Math.min(width, x.width) * x.channels;
  for (let r = 0; r < Math.min(height, x.height); r++) {
    const start = r * x.width * x.channels;
    result.data.set(x.data.subarray(start, start + rowLength), r * width * x.channels);
  }
  return result;
}
