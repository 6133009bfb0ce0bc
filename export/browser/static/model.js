// Runs the exported model with ONNX Runtime's WebAssembly build, on one thread. Several threads require
// cross-origin isolation headers, which a plain static server does not send.
import * as ort from "./ort/ort.wasm.bundle.min.mjs";
import { cropOrPad, makeGrid } from "./grid.js";

ort.env.wasm.numThreads = 1;
ort.env.wasm.wasmPaths = { wasm: new URL("./ort/ort-wasm-simd-threaded.wasm", import.meta.url).href };
ort.env.logLevel = "error";

// Loads the model. Returns the content of model.json, the examples, the bytes of the model, and a function that
// predicts.
export async function loadModel() {
  const [info, examples, model] = await Promise.all(["model.json", "examples.json", "model.onnx"].map(fetchFile));
  const session = await ort.InferenceSession.create(model, { executionProviders: ["wasm"], logSeverityLevel: 3 });
  const predict = (x) => run(session, info, x);
  return { info, examples: examples.map(readExample), bytes: model.byteLength, predict };
}

// A page may have been written again, so the browser asks whether its copy of a file is still the same.
async function fetchFile(name) {
  const response = await fetch(name, { cache: "no-cache" });
  if (!response.ok) throw new Error(`cannot load ${name}: the server answered ${response.status} ${response.statusText}`);
  return name.endsWith(".json") ? response.json() : response.arrayBuffer();
}

// An example is a grid in base64, as little-endian float32 or as the bytes of an image, and the right answer as
// text, if there is one.
function readExample({ shape, dtype, data, target }) {
  const bytes = Uint8Array.from(atob(data), (character) => character.charCodeAt(0));
  const values = dtype === "uint8" ? Float32Array.from(bytes, (level) => level / 255) : new Float32Array(bytes.buffer);
  return { x: makeGrid(...shape, values), target };
}

// The prediction for a grid, as a grid. If the model returns one vector for the whole grid, or one for each
// step of a text, the result has height 0 and one column per vector; other vectors are a grid of one row.
async function run(session, { channelsLast, columnsPerStep, grid, kind, output, outputs, sizes, window: hasGrid }, x) {
  const fed = sizes ? cropOrPad(x, grid[0] ?? x.height, grid[1] ?? x.width) : x;
  const shape = channelsLast ? [fed.height, fed.width, x.channels] : [x.channels, fed.height, fed.width];
  const values = channelsLast ? fed.data : transpose(fed.data, x.channels);
  const feeds = { x: new ort.Tensor("float32", values, [1, ...shape]) };
  if (sizes) feeds.sizes = new ort.Tensor("int64", BigInt64Array.of(BigInt(x.height), BigInt(x.width)), [1, 2]);
  const start = performance.now();
  const { type, data, dims } = (await session.run(feeds))[output];
  const milliseconds = performance.now() - start;
  const numbers = type === "float32" ? data : Float64Array.from(data, Number); // others hold integers
  if (!hasGrid) {
    const vectors = numbers.length / outputs;
    if (kind !== "transcribe") return { milliseconds, y: makeGrid(Number(vectors > 1), vectors, outputs, numbers) };
    const isStep = (columns) => columns && Math.ceil(fed.width / columns) === vectors;
    const columns = [columnsPerStep, Math.ceil(fed.width / vectors)].find(isStep) ?? fed.width / vectors;
    const steps = Math.min(vectors, Math.ceil(x.width / columns)); // without padding
    return { milliseconds, y: makeGrid(0, steps, outputs, numbers.subarray(0, steps * outputs)) };
  }
  const y = channelsLast ? makeGrid(...dims.slice(1), numbers)
    : makeGrid(dims[2], dims[3], dims[1], transpose(numbers, dims[2] * dims[3]));
  const extents = [Math.ceil(x.height / hasGrid[0]), Math.ceil(x.width / hasGrid[1])]; // without padding
  return { milliseconds, y: sizes ? cropOrPad(y, ...extents) : y };
}

// Transposes a flat matrix with the given number of columns.
function transpose(data, columns) {
  const rows = data.length / columns;
  return data.map((_, k) => data[(k % rows) * columns + Math.floor(k / rows)]);
}
