// A graph that draws the rows of images, on this device's CPU. The page and its benchmark draw with it.
import * as ort from "./ort/ort.wasm.bundle.min.mjs";

ort.env.wasm.numThreads = 1;
ort.env.wasm.wasmPaths = { wasm: new URL("./ort/ort-wasm-simd-threaded.wasm", import.meta.url).href };
ort.env.logLevel = "error";

// Loads the model beside this file.
export async function loadModel() {
  const info = await (await fetchFile("model.json")).json();
  const bytes = new Uint8Array(await (await fetchFile("model.onnx")).arrayBuffer());
  const session = await ort.InferenceSession.create(bytes, { executionProviders: ["wasm"], logSeverityLevel: 3 });
  return new DrawingModel(info, session);
}

async function fetchFile(name) {
  const response = await fetch(name);
  if (!response.ok) throw new Error(`cannot load ${name}: the server answered ${response.status} ${response.statusText}`);
  return response;
}

class DrawingModel {
  constructor(info, session) {
    Object.assign(this, info); // the content of model.json
    this.session = session;
    [this.height, this.width] = info.drawing.size;
    this.levels = info.drawing.levels;
  }

  // Draws a picture row by row, where `given`, (height, width, channels), is −1; elsewhere it has the values. Returns the
  // values, the logits (height, width, channels, levels), and the milliseconds; or null once `isStale` says that nobody
  // waits for them.
  async draw(given, temperature = 1, isStale = () => false) {
    const { height, width, channels, levels } = this;
    const rowLength = width * channels;
    const values = new Float32Array(height * rowLength);
    const logits = new Float32Array(height * rowLength * levels);
    let above = new Float32Array((width + 3) * channels); // in [−1, 1], zeros around it
    let state = new Float32Array((width + 1) * this.drawing.state);
    const tensor = (data, ...dims) => new ort.Tensor("float32", data, [1, ...dims]);
    const start = performance.now();
    for (let row = 0; row < height; row++) {
      const outputs = await this.session.run({
        x: tensor(Float32Array.from({ length: rowLength }, () => Math.random()), width, channels),
        above: tensor(above, width + 3, channels),
        given: tensor(given.slice(row * rowLength, (row + 1) * rowLength), width, channels),
        temperature: tensor(Float32Array.of(temperature), 1),
        state: tensor(state, width + 1, this.drawing.state),
      });
      if (isStale()) return null;
      values.set(outputs.y.data, row * rowLength);
      logits.set(outputs.logits.data, row * rowLength * levels);
      above = new Float32Array((width + 3) * channels);
      above.set(outputs.y.data.map((value) => 2 * value - 1), channels);
      state = outputs.next_state.data;
    }
    return { values, logits, milliseconds: performance.now() - start };
  }
}
