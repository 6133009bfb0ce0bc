// The page: runs the model on the grid that the user draws or opens, and shows the prediction next to it.
import { LIMIT, readGrid, toCsv } from "./files.js";
import { HeatMap, formatNumber } from "./heatmap.js";
import { cropOrPad, loadModel, makeGrid } from "./model.js";

const element = (id) => document.getElementById(id);
const [height, width, ink, message, values] = ["height", "width", "ink", "message", "values"].map(element);
const input = new HeatMap(element("input"), showInput);
const output = new HeatMap(element("prediction"), showPrediction);
const channelNames = (count, known) => Array.from({ length: count }, (_, k) => known?.[k] ?? `${k + 1} of ${count}`);

let model; // the result of loadModel()
let x; // the input grid
let y; // the prediction for it
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
    info.grid ? `Grids ${info.sizes ? "up to" : "of"} ${info.grid.join("×")}` : "Grids of any size",
    `${info.channels} → ${info.outputs} numbers${info.window ? " per position" : ""}`,
    `${Math.ceil(info.bytes / 1024)} KiB`,
    `exported by mdlstm-tk ${info.version}`,
  ].join(" · ");
  input.setChannels(channelNames(info.channels));
  output.setChannels(channelNames(info.outputs, info.classes));
  element("hint").hidden = info.task !== "diagonal";
  [height, width].forEach((field, axis) => {
    field.max = info.grid?.[axis] ?? LIMIT;
    field.value = info.grid?.[axis] ?? 16;
    field.disabled = info.grid !== null && !info.sizes;
  });
  // The first run includes compilation, so its time is not shown.
  await model.predict(makeGrid(Number(height.value), Number(width.value), info.channels)).catch(showError);
  for (const id of ["example", "clear", "open"]) element(id).disabled = false;
  return example();
}

// Replaces the input grid, whether it was drawn, opened or resized.
function setInput(next) {
  const { info } = model;
  const size = [next.height, next.width];
  const fits = (extent, axis) => (info.sizes ? size[axis] <= extent : size[axis] === extent);
  if (info.grid && !info.grid.every(fits))
    throw new Error(`a ${size.join("×")} grid does not fit this model, which takes ${
      info.sizes ? "up to " : ""}${info.grid.join("×")}`);
  x = next;
  [height.value, width.value] = size;
  cursor = [Math.min(cursor[0], x.height - 1), Math.min(cursor[1], x.width - 1)];
  showInput();
  run();
}

// Only one run is active at a time. If the input changes meanwhile, the model runs once more afterwards.
let running = false;
let runAgain = false;
async function run() {
  runAgain = running;
  if (running) return;
  running = true;
  try {
    const result = await model.predict(x);
    y = result.y;
    showPrediction();
    if (!runAgain) showMessage(`${result.milliseconds.toFixed(1)} ms on this device’s CPU, one thread`);
  } catch (error) {
    showError(error);
  }
  running = false;
  if (runAgain) run();
}

function showInput() {
  input.draw(x);
  if (!input.cursor.hidden) input.moveCursor(...cursorFractions());
}

function showPrediction() {
  const hasGrid = y.height > 0; // otherwise y is one vector for the whole grid
  for (const part of [output.frame, output.scale, output.value]) part.hidden = !hasGrid;
  const bars = element("prediction").querySelector(".bars");
  bars.hidden = hasGrid;
  output.select.hidden = !hasGrid || y.channels < 2;
  if (!hasGrid) {
    const maximum = Math.max(1, ...y.data);
    bars.replaceChildren(...channelNames(y.channels, model.info.classes).map((name, k) => {
      const bar = Object.assign(document.createElement("li"), { textContent: `${name}: ${formatNumber(y.data[k])}` });
      bar.style.setProperty("--share", Math.max(0, y.data[k] / maximum));
      return bar;
    }));
  } else {
    output.draw(y);
    if (!input.cursor.hidden) output.moveCursor(...cursorFractions());
  }
  if (values.open) values.querySelector("pre").textContent = predictionCsv();
}

const predictionCsv = () => (y.height ? toCsv(y, output.channel) : toCsv({ ...y, height: 1, width: y.channels, channels: 1 }, 0));

// The cursor in fractions of the height and width, since the prediction may have another size than the input.
const cursorFractions = () => [(cursor[0] + 0.5) / x.height, (cursor[1] + 0.5) / x.width];

function moveCursor(row, column) {
  cursor = [row, column];
  input.moveCursor(...cursorFractions());
  if (y?.height) output.moveCursor(...cursorFractions());
}

function paint(value) {
  x.data[(cursor[0] * x.width + cursor[1]) * x.channels + input.channel] = value;
  showInput();
  run();
}

// Noise with two ones on a diagonal, as in the training data of the diagonal task.
function example() {
  const next = makeGrid(Number(height.value), Number(width.value), model.info.channels);
  next.data.forEach((_, k, data) => { data[k] = Math.random() * 0.1; });
  const [rows, columns] = [next.height - 2, next.width - 2];
  if (Math.min(rows, columns) > 0) {
    const [row, column] = [1 + Math.floor(Math.random() * rows), 1 + Math.floor(Math.random() * columns)];
    for (const step of [0, 1]) {
      const start = ((row + step) * next.width + column + step) * next.channels;
      next.data.fill(1, start, start + next.channels);
    }
  }
  setInput(next);
}

function resize() {
  const size = [height, width].map((field) => Math.min(Math.max(Math.round(field.value) || 1, 1), Number(field.max)));
  setInput(cropOrPad(x, ...size));
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
  const oldValue = x.data[(cursor[0] * x.width + cursor[1]) * x.channels + input.channel];
  stroke = Math.abs(oldValue - ink.value) < 1e-6 ? 0 : Number(ink.value);
  paint(stroke);
});
input.canvas.addEventListener("pointermove", (event) => {
  if (!x) return;
  moveCursor(...input.positionOf(event));
  if (stroke !== null) paint(stroke);
});
for (const kind of ["pointerup", "pointercancel"]) input.canvas.addEventListener(kind, () => { stroke = null; });
output.canvas.addEventListener("pointermove", (event) => {
  if (!y?.height) return;
  const [row, column] = output.positionOf(event);
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
values.addEventListener("toggle", () => { if (y) values.querySelector("pre").textContent = predictionCsv(); });
element("save").addEventListener("click", () => {
  const link = document.createElement("a");
  link.href = URL.createObjectURL(new Blob([predictionCsv()], { type: "text/csv" }));
  link.download = "prediction.csv";
  link.click();
  URL.revokeObjectURL(link.href);
});

start();
