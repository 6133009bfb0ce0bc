// The page of a graph that draws the rows of images: runs it row by row, and shows one pixel after the other.
import * as ort from "./ort/ort.wasm.bundle.min.mjs";

ort.env.wasm.numThreads = 1;
ort.env.wasm.wasmPaths = { wasm: new URL("./ort/ort-wasm-simd-threaded.wasm", import.meta.url).href };
ort.env.logLevel = "error";

const element = (id) => document.getElementById(id);
const [draw, clear, ink, temperature, message] = ["draw", "clear", "ink", "temperature", "message"].map(element);
const canvas = document.querySelector("canvas");
const cursorMark = document.querySelector(".cursor");
const SECONDS = 1.5; // that the animation of a picture takes, about

let info, session; // the content of model.json, the graph
let height, width, channels;
let values; // (height, width, channels) in [0, 1]
let given = 0; // upper rows that the user has drawn
let shown = 0; // pixels that are drawn or given
let cursor = [0, 0];
let drawing = 0; // the number of the drawing in progress; a new one ends it

async function start() {
  try {
    info = await (await fetchFile("model.json")).json();
    const bytes = new Uint8Array(await (await fetchFile("model.onnx")).arrayBuffer());
    session = await ort.InferenceSession.create(bytes, { executionProviders: ["wasm"], logSeverityLevel: 3 });
  } catch (error) {
    return showError(error);
  }
  [height, width] = info.drawing.size;
  channels = info.channels;
  document.title = element("title").textContent = info.name;
  element("facts").textContent = [`${height}×${width}`, `${Math.ceil(info.bytes / 1024)} KiB`,
    `exported by mdlstm-tk ${info.version}`].join(" · ");
  Object.assign(canvas, { width, height });
  canvas.parentElement.style.setProperty("--aspect", width / height);
  reset();
  draw.disabled = clear.disabled = false;
  return drawPicture();
}

async function fetchFile(name) {
  const response = await fetch(name);
  if (!response.ok) throw new Error(`cannot load ${name}: the server answered ${response.status} ${response.statusText}`);
  return response;
}

// Draws all rows below the given ones, then the animation of what is new.
async function drawPicture() {
  const number = ++drawing;
  const rowLength = width * channels;
  const picture = values.slice();
  let above = new Float32Array((width + 3) * channels);
  let state = new Float32Array((width + 1) * info.drawing.state);
  const tensor = (data, ...dims) => new ort.Tensor("float32", data, [1, ...dims]);
  const start = performance.now();
  try {
    for (let row = 0; row < height; row++) {
      const known = row < given ? picture.slice(row * rowLength, (row + 1) * rowLength) : new Float32Array(rowLength).fill(-1);
      const outputs = await session.run({
        x: tensor(Float32Array.from({ length: rowLength }, () => Math.random()), width, channels),
        above: tensor(above, width + 3, channels),
        given: tensor(known, width, channels),
        temperature: tensor(Float32Array.of(Number(temperature.value)), 1),
        state: tensor(state, width + 1, info.drawing.state),
      });
      if (number !== drawing) return;
      const drawn = outputs.y.data;
      picture.set(drawn, row * rowLength);
      above = new Float32Array((width + 3) * channels);
      above.set(drawn.map((value) => 2 * value - 1), channels);
      state = outputs.next_state.data;
    }
  } catch (error) {
    return showError(error);
  }
  const milliseconds = performance.now() - start;
  values = picture;
  showNumbers();
  await animate(number);
  if (number === drawing) showMessage(`Drawn in ${milliseconds.toFixed(0)} ms on this device’s CPU, one thread`);
}

async function animate(number) {
  const first = given * width;
  const start = performance.now();
  const still = matchMedia("(prefers-reduced-motion: reduce)").matches;
  do {
    const now = await new Promise(requestAnimationFrame);
    if (number !== drawing) return;
    const share = still ? 1 : Math.max(0, now - start) / (1000 * SECONDS);
    shown = Math.min(height * width, first + Math.floor(share * (height * width - first)));
    show();
  } while (shown < height * width);
}

function show() {
  const context = canvas.getContext("2d");
  const image = context.createImageData(width, height);
  for (let k = 0; k < height * width; k++) {
    const colour = k < shown ? [0, 1, 2].map((c) => 255 * values[k * channels + (channels === 3 ? c : 0)]) : [127, 137, 156];
    image.data.set([...colour, 255], 4 * k);
  }
  context.putImageData(image, 0, 0);
}

function showNumbers() {
  const rows = Array.from({ length: height }, (_, row) => values.slice(row * width * channels, (row + 1) * width * channels));
  document.querySelector("pre").textContent = rows.map((row) => [...row].map((value) => +value.toFixed(6)).join(",")).join("\n");
}

function reset() {
  drawing++;
  values = new Float32Array(height * width * channels);
  [given, shown] = [0, 0];
  element("given").textContent = "Draw here, or let the network draw all of it";
  show();
  showNumbers();
}

// The user has drawn in a row: it and those above are given, and what the network had drawn below goes.
function paint([row, column]) {
  drawing++;
  values.fill(0, Math.max(given, 0) * width * channels);
  given = Math.max(given, row + 1);
  shown = given * width;
  values.fill(Number(ink.value), (row * width + column) * channels, (row * width + column + 1) * channels);
  element("given").textContent = `${given} of ${height} rows are given; Draw completes the picture`;
  show();
  showNumbers();
}

function moveCursor(row, column) {
  cursor = [Math.min(Math.max(row, 0), height - 1), Math.min(Math.max(column, 0), width - 1)];
  cursorMark.hidden = false;
  Object.assign(cursorMark.style, { left: `${(100 * cursor[1]) / width}%`, top: `${(100 * cursor[0]) / height}%`,
    width: `${100 / width}%`, height: `${100 / height}%` });
}

function positionOf({ clientX, clientY }) {
  const box = canvas.getBoundingClientRect();
  return [Math.floor(((clientY - box.top) / box.height) * height), Math.floor(((clientX - box.left) / box.width) * width)];
}

function showMessage(text) {
  message.textContent = text;
  message.classList.remove("error");
}

function showError(error) {
  message.textContent = error.message;
  message.classList.add("error");
}

let stroke = false;
canvas.addEventListener("pointerdown", (event) => {
  if (!values || event.button) return;
  canvas.setPointerCapture(event.pointerId);
  stroke = true;
  moveCursor(...positionOf(event));
  paint(cursor);
});
canvas.addEventListener("pointermove", (event) => {
  if (!values) return;
  moveCursor(...positionOf(event));
  if (stroke) paint(cursor);
});
for (const kind of ["pointerup", "pointercancel"]) canvas.addEventListener(kind, () => { stroke = false; });
canvas.addEventListener("keydown", (event) => {
  const step = { ArrowUp: [-1, 0], ArrowDown: [1, 0], ArrowLeft: [0, -1], ArrowRight: [0, 1] }[event.key];
  if (!values || !(step || event.key === " ")) return;
  event.preventDefault();
  if (step) moveCursor(cursor[0] + step[0], cursor[1] + step[1]);
  else paint(cursor);
});
draw.addEventListener("click", drawPicture);
clear.addEventListener("click", reset);
temperature.addEventListener("input", () => { element("temperature-value").textContent = Number(temperature.value).toFixed(2); });

start();
