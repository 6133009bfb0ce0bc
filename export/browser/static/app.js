// The page: runs the model on the grid that the user draws or opens, and shows the prediction next to it.
import { LIMIT, POSITIONS, readGrid } from "./files.js";
import { cropOrPad, makeGrid } from "./grid.js";
import { HeatMap, formatNumber } from "./heatmap.js";
import { loadModel } from "./model.js";
import { Prediction, channelNames } from "./prediction.js";

const element = (id) => document.getElementById(id);
const [height, width, ink, message, values] = ["height", "width", "ink", "message", "values"].map(element);
const input = new HeatMap(element("input"), showInput);
const COLOURS = ["colours", "red", "green", "blue"]; // the menu of an input that is an image in colours

let model; // the result of loadModel()
let x; // the input grid
let prediction; // what shows the prediction for it
let showsImage; // whether x is an image in colours
let showsGrey; // whether x is a grey image
let nextExample = 0;
let cursor = [0, 0]; // row and column in the input grid

async function start() {
  try {
    model = await loadModel();
  } catch (error) {
    return showError(error);
  }
  const { info } = model;
  document.title = element("title").textContent = info.name;
  element("facts").textContent = [
    info.grid ? `Grids ${info.sizes ? "up to" : "of"} ${sizeOf(info.grid)}` : "Grids of any size",
    meaning(info),
    `${Math.ceil(info.bytes / 1024)} KiB`,
    `exported by mdlstm-tk ${info.version}`,
  ].join(" · ");
  prediction = new Prediction(element("prediction"), info);
  showsImage = info.preprocessing?.channels === 3;
  showsGrey = info.channels === 1 && Boolean(info.preprocessing || (info.kind && info.kind !== "grid"));
  input.setChannels(showsImage ? COLOURS : channelNames(info.channels));
  element("hint").hidden = !info.isDiagonal;
  [height, width].forEach((field, axis) => {
    const step = info.multipleOf?.[axis] ?? 1;
    const most = Math.floor(POSITIONS / (info.grid?.[1 - axis] ?? LIMIT)); // lines of text may be long
    Object.assign(field, { min: (info.grid?.[axis] ? null : info.minGrid?.[axis]) ?? step, step, max: info.grid?.[axis] ?? most });
    field.value = info.grid?.[axis] ?? Math.max(Math.ceil(16 / step) * step, field.min);
    field.disabled = !info.sizes && (info.grid?.[axis] ?? null) !== null;
  });
  // The first run includes compilation, so its time is not shown.
  await model.predict(makeGrid(Number(height.value), Number(width.value), info.channels)).catch(showError);
  for (const id of ["example", "clear", "open"]) element(id).disabled = false;
  return example();
}

// A grid in words; one of its extents may be free.
const sizeOf = (grid) => grid.map((extent) => extent ?? "any").join("×");

// What goes in and comes out, in words.
function meaning({ kind, channels, outputs, window: hasGrid, classes }) {
  const from = `${channels} ${channels > 1 ? "channels" : "channel"}`;
  if (kind === "transcribe") return `${from} → text of ${classes.length} different characters`;
  const unit = ["classify", "segment"].includes(kind) ? "classes" : outputs > 1 ? "numbers" : "number";
  return `${from} → ${outputs} ${unit}${hasGrid ? " at each position" : ""}`;
}

// Replaces the input grid, whether it was drawn, opened or resized.
function setInput(next) {
  const { info } = model;
  const size = [next.height, next.width];
  const fits = (extent, axis) => extent === null || (info.sizes ? size[axis] <= extent : size[axis] === extent);
  if (info.grid && !info.grid.every(fits))
    throw new Error(`a ${size.join("×")} grid does not fit this model, which takes ${
      info.sizes ? "up to " : ""}${sizeOf(info.grid)}`);
  if (info.multipleOf?.some((step, axis) => size[axis] % step))
    throw new Error(`a ${size.join("×")} grid does not fit this model, which takes multiples of ${info.multipleOf.join("×")}`);
  if (info.minGrid?.some((least, axis) => !info.grid?.[axis] && size[axis] < least))
    throw new Error(`a ${size.join("×")} grid does not fit this model, which takes at least ${info.minGrid.join("×")}`);
  x = next;
  element("target").hidden = true; // that of an example
  [height, width].forEach((field, axis) => {
    field.max = info.grid?.[axis] ?? Math.floor(POSITIONS / size[1 - axis]);
    field.value = size[axis];
  });
  cursor = [Math.min(cursor[0], x.height - 1), Math.min(cursor[1], x.width - 1)];
  showInput();
  run();
}

const formatTime = (milliseconds) => milliseconds.toFixed(milliseconds < 100 ? 1 : 0);

// Only one run is active at a time. If the input changes meanwhile, the model runs once more afterwards.
let running = false;
let runAgain = false;
async function run() {
  runAgain = running;
  if (running) return;
  running = true;
  try {
    const result = await model.predict(x);
    prediction.show(result.y);
    updateNumbers();
    if (!input.cursor.hidden) prediction.moveCursor(...cursorFractions());
    if (!runAgain) showMessage(`${formatTime(result.milliseconds)} ms on this device’s CPU, one thread${x.warning ? `; ${x.warning}` : ""}`);
  } catch (error) {
    prediction.clear();
    updateNumbers();
    showError(error);
  }
  running = false;
  if (runAgain) run();
}

function showInput() {
  if (showsImage && input.channel === 0) input.drawImage(x);
  else input.draw(x, input.channel - (showsImage ? 1 : 0), showsGrey);
  if (!input.cursor.hidden) moveInputCursor();
}

function updateNumbers() {
  if (values.open) values.querySelector("pre").textContent = prediction?.y ? prediction.csv() : "";
}

// The cursor in fractions of the height and width, since the prediction may have another size than the input.
const cursorFractions = () => [(cursor[0] + 0.5) / x.height, (cursor[1] + 0.5) / x.width];

function moveInputCursor() {
  const start = (cursor[0] * x.width + cursor[1]) * x.channels;
  const colours = () => [...x.data.subarray(start, start + 3)].map(formatNumber).join(", ");
  input.moveCursor(...cursorFractions(), showsImage && input.channel === 0 ? colours : undefined);
}

function moveCursor(row, column) {
  cursor = [row, column];
  moveInputCursor();
  prediction.moveCursor(...cursorFractions());
}

// The part of x.data that drawing at the cursor changes: one channel, or all of an image in colours.
function drawnValues() {
  const start = (cursor[0] * x.width + cursor[1]) * x.channels;
  if (!showsImage) return x.data.subarray(start + input.channel, start + input.channel + 1);
  return input.channel === 0 ? x.data.subarray(start, start + 3) : x.data.subarray(start + input.channel - 1, start + input.channel);
}

function paint(value) {
  element("target").hidden = true;
  drawnValues().fill(value);
  showInput();
  run();
}

// The next of the examples, which the exporter took from the validation data; random numbers if it had none.
function example() {
  const target = element("target");
  const { examples, info } = model;
  if (examples.length) {
    const { x: next, target: text } = examples[nextExample++ % examples.length];
    setInput({ ...next, data: Float32Array.from(next.data) });
    [target.hidden, target.textContent] = [!text, `Expected: ${text}`];
    return;
  }
  const next = makeGrid(Number(height.value), Number(width.value), info.channels);
  next.data.forEach((_, k, data) => { data[k] = Math.random(); });
  setInput(next);
}

function resize() {
  if (!x) return; // the model is still being compiled
  const size = [height, width].map(({ value, step, min, max }) =>
    Math.min(Math.max(Math.round(value / step) || 1, min / step), Math.floor(max / step)) * step);
  setInput({ ...cropOrPad(x, ...size), warning: x.warning });
}

async function openFile(file) {
  if (!file) return;
  try {
    setInput(await readGrid(file, model.info));
  } catch (error) {
    showError(error);
  }
}

function showMessage(text) {
  message.textContent = text;
  message.classList.remove("error");
}

function showError(error) {
  message.textContent = error.message;
  message.classList.add("error");
}

// A stroke that starts on a position that already has the ink's value erases instead.
let stroke = null; // the value that is being drawn
input.canvas.addEventListener("pointerdown", (event) => {
  if (!x || event.button) return;
  input.canvas.setPointerCapture(event.pointerId);
  moveCursor(...input.positionOf(event));
  stroke = drawnValues().every((value) => Math.abs(value - ink.value) < 1e-6) ? 0 : Number(ink.value);
  paint(stroke);
});
input.canvas.addEventListener("pointermove", (event) => {
  if (!x) return;
  moveCursor(...input.positionOf(event));
  if (stroke !== null) paint(stroke);
});
for (const kind of ["pointerup", "pointercancel"]) input.canvas.addEventListener(kind, () => { stroke = null; });
element("prediction").querySelector("canvas").addEventListener("pointermove", (event) => {
  if (!prediction?.y?.height) return;
  const { y, map } = prediction;
  const [row, column] = map.positionOf(event);
  moveCursor(Math.floor(((row + 0.5) / y.height) * x.height), Math.floor(((column + 0.5) / y.width) * x.width));
});
input.canvas.addEventListener("keydown", (event) => {
  const step = { ArrowUp: [-1, 0], ArrowDown: [1, 0], ArrowLeft: [0, -1], ArrowRight: [0, 1] }[event.key];
  if (!x || !(step || event.key === " ")) return;
  event.preventDefault();
  if (!step) return paint(Number(ink.value));
  const [row, column] = [cursor[0] + step[0], cursor[1] + step[1]];
  if (row >= 0 && row < x.height && column >= 0 && column < x.width) moveCursor(row, column);
});

ink.addEventListener("input", () => { element("ink-value").textContent = Number(ink.value).toFixed(2); });
for (const field of [height, width]) field.addEventListener("change", resize);
element("example").addEventListener("click", example);
element("clear").addEventListener("click", () => setInput(makeGrid(x.height, x.width, x.channels)));
element("open").addEventListener("click", () => element("file").click());
element("file").addEventListener("change", ({ target }) => {
  openFile(target.files[0]);
  target.value = "";
});
document.addEventListener("dragover", (event) => event.preventDefault());
document.addEventListener("drop", (event) => {
  event.preventDefault();
  if (model) openFile(event.dataTransfer.files[0]);
});
element("prediction").querySelector("select").addEventListener("change", updateNumbers);
values.addEventListener("toggle", updateNumbers);
element("save").addEventListener("click", () => {
  if (!prediction?.y) return;
  const link = document.createElement("a");
  link.href = URL.createObjectURL(new Blob([prediction.csv()], { type: "text/csv" }));
  link.download = "prediction.csv";
  link.click();
  URL.revokeObjectURL(link.href);
});

start();
