// Runs the exported model with ONNX Runtime's WebAssembly build, on one thread. Several threads require
// cross-origin isolation headers, which a plain static server does not send.
import * as ort from "./ort/ort.wasm.bundle.min.mjs";
import { cropOrPad, makeGrid } from "./grid.js";

ort.env.wasm.numThreads = 1;
ort.env.wasm.wasmPaths = { wasm: new URL("./ort/ort-wasm-simd-threaded.wasm", import.meta.url).href };
ort.env.logLevel = "error";

// Loads the model; returns the content of model.json, the examples, and a function that predicts.
export async function loadModel() {
  const info = await (await fetchFile("model.json")).json();
  const examples = (await (await fetchFile("examples.json")).json()).map(readExample);
  const bytes = new Uint8Array(await (await fetchFile("model.onnx")).arrayBuffer());
  if (bytes.length !== info.bytes)
    throw new Error(`model.onnx has ${bytes.length} bytes, expected ${info.bytes}, as model.json says; write the page again`);
  const session = await ort.InferenceSession.create(bytes, { executionProviders: ["wasm"], logSeverityLevel: 3 });
  return { info, examples, predict: (x) => predict(session, info, x) };
}

// An example is a grid in base64, as little-endian float32 or as the bytes of an image, and the right answer as
// text, if there is one.
function readExample({ height, width, channels, dtype, data, target }) {
  const bytes = Uint8Array.from(atob(data), (character) => character.charCodeAt(0));
  const values = dtype === "uint8" ? Float32Array.from(bytes, (level) => level / 255) : new Float32Array(bytes.buffer);
  return { x: makeGrid(height, width, channels, values), target };
}

// A page may have been written again, so the browser asks whether its copy of a file is still the same.
async function fetchFile(name) {
  const response = await fetch(name, { cache: "no-cache" });
  if (!response.ok) throw new Error(`cannot load ${name}: the server answered ${response.status} ${response.statusText}`);
  return response;
}

// The prediction for a grid, as a grid. If the model returns one vector for the whole grid, or one for each
// step of a text, the result has height 0 and one column per vector; other vectors are a grid of one row.
async function predict(session, info, x) {
  const padded = info.sizes ? cropOrPad(x, info.grid?.[0] ?? x.height, info.grid?.[1] ?? x.width) : x;
  const extents = [padded.height, padded.width];
  const { channelsLast } = info;
  const feeds = { x: new ort.Tensor("float32", channelsLast ? padded.data : transpose(padded.data, x.channels),
    channelsLast ? [1, ...extents, x.channels] : [1, x.channels, ...extents]) };
  if (info.sizes) feeds.sizes = new ort.Tensor("int64", BigInt64Array.of(BigInt(x.height), BigInt(x.width)), [1, 2]);
  const start = performance.now();
  const y = (await session.run(feeds))[info.output];
  const milliseconds = performance.now() - start;
  const values = y.type === "float32" ? y.data : Float64Array.from(y.data, Number); // others hold integers
  if (!info.window) {
    const count = values.length / info.outputs;
    return { milliseconds, y: makeGrid(count > 1 && info.kind !== "transcribe" ? 1 : 0, count, info.outputs, values) };
  }
  const result = channelsLast ? makeGrid(...y.dims.slice(1), values)
    : makeGrid(y.dims[2], y.dims[3], y.dims[1], transpose(values, y.dims[2] * y.dims[3]));
  const validSize = [Math.ceil(x.height / info.window[0]), Math.ceil(x.width / info.window[1])];
  return { milliseconds, y: info.sizes ? cropOrPad(result, ...validSize) : result };
}

// Transposes a flat matrix with the given number of columns.
function transpose(data, columns) {
  const rows = data.length / columns;
  return data.map((_, k) => data[(k % rows) * columns + Math.floor(k / rows)]);
}
