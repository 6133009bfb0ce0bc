// The page: what is drawn or opened goes through the model and is shown beside it.
import { LIMIT, read, toCsv } from "./files.js";
import { HeatMap, number } from "./heatmap.js";
import { fit, grid, load } from "./model.js";

const element = (id) => document.getElementById(id);
const [height, width, ink, message, values] = ["height", "width", "ink", "message", "values"].map(element);
const input = new HeatMap(element("input"), showInput);
const output = new HeatMap(element("prediction"), showPrediction);
const names = (count, given) => Array.from({ length: count }, (_, k) => given?.[k] ?? `${k + 1} of ${count}`);

let model; // what load() gave
let x; // the grid that is shown
let y; // its prediction
let place = [0, 0]; // row and column of the cursor

async function start() {
  try {
    model = await load();
  } catch (error) {
    return fail(error);
  }
  const { about } = model;
  document.title = element("title").textContent = about.name;
  element("facts").textContent = [
    about.grid ? `Grids ${about.sizes ? "up to" : "of"} ${about.grid.join("×")}` : "Grids of any size",
    `${about.channels} → ${about.outputs} numbers${about.window ? " a cell" : ""}`,
    `${Math.ceil(about.bytes / 1024)} KiB`,
    `exported by mdlstm-tk ${about.version}`,
  ].join(" · ");
  input.choices(names(about.channels));
  output.choices(names(about.outputs, about.classes));
  element("hint").hidden = about.task !== "diagonal";
  [height, width].forEach((field, axis) => {
    field.max = about.grid?.[axis] ?? LIMIT;
    field.value = about.grid?.[axis] ?? 16;
    field.disabled = about.grid !== null && !about.sizes;
  });
  // The first run is slow, as code is still being compiled: it is not the one to time.
  await model.predict(grid(Number(height.value), Number(width.value), about.channels)).catch(fail);
  for (const id of ["example", "clear", "open"]) element(id).disabled = false;
  return example();
}

// What holds of every way to come by a new grid.
function take(next) {
  const { about } = model;
  const size = [next.height, next.width];
  const fits = (extent, axis) => (about.sizes ? size[axis] <= extent : size[axis] === extent);
  if (about.grid && !about.grid.every(fits))
    throw new Error(`a ${size.join("×")} grid does not fit this model, which takes ${
      about.sizes ? "up to " : ""}${about.grid.join("×")}`);
  x = next;
  [height.value, width.value] = size;
  place = [Math.min(place[0], x.height - 1), Math.min(place[1], x.width - 1)];
  showInput();
  run();
}

// One run at a time; what changed meanwhile gets one more.
let running = false;
let again = false;
async function run() {
  again = running;
  if (running) return;
  running = true;
  try {
    const result = await model.predict(x);
    y = result.y;
    showPrediction();
    if (!again) say(`${result.milliseconds.toFixed(1)} ms on this device’s CPU, one thread`);
  } catch (error) {
    fail(error);
  }
  running = false;
  if (again) run();
}

function showInput() {
  input.show(x);
  if (!input.cursor.hidden) input.point(...share());
}

function showPrediction() {
  const whole = y.height === 0; // one answer for the whole grid
  for (const part of [output.frame, output.scale, output.value]) part.hidden = whole;
  const bars = element("prediction").querySelector(".bars");
  bars.hidden = !whole;
  output.select.hidden = whole || y.channels < 2;
  if (whole) {
    const most = Math.max(1, ...y.data);
    bars.replaceChildren(...names(y.channels, model.about.classes).map((name, k) => {
      const bar = Object.assign(document.createElement("li"), { textContent: `${name}: ${number(y.data[k])}` });
      bar.style.setProperty("--share", Math.max(0, y.data[k] / most));
      return bar;
    }));
  } else {
    output.show(y);
    if (!input.cursor.hidden) output.point(...share());
  }
  if (values.open) values.querySelector("pre").textContent = numbers();
}

const numbers = () => (y.height ? toCsv(y, output.channel) : toCsv({ ...y, height: 1, width: y.channels, channels: 1 }, 0));

// Where the cursor is, as shares of the height and width, as the prediction may have another size.
const share = () => [(place[0] + 0.5) / x.height, (place[1] + 0.5) / x.width];

function point(row, column) {
  place = [row, column];
  input.point(...share());
  if (y?.height) output.point(...share());
}

function paint(value) {
  x.data[(place[0] * x.width + place[1]) * x.channels + input.channel] = value;
  showInput();
  run();
}

// Noise and two ones, as the network saw them in training.
function example() {
  const next = grid(Number(height.value), Number(width.value), model.about.channels);
  next.data.forEach((_, k, data) => { data[k] = Math.random() * 0.1; });
  const [rows, columns] = [next.height - 2, next.width - 2];
  if (Math.min(rows, columns) > 0) {
    const [row, column] = [1 + Math.floor(Math.random() * rows), 1 + Math.floor(Math.random() * columns)];
    for (const step of [0, 1]) {
      const from = ((row + step) * next.width + column + step) * next.channels;
      next.data.fill(1, from, from + next.channels);
    }
  }
  take(next);
}

function resize() {
  const size = [height, width].map((field) => Math.min(Math.max(Math.round(field.value) || 1, 1), Number(field.max)));
  take(fit(x, ...size));
}

async function openFile(file) {
  if (!file) return;
  try {
    take(await read(file, model.about));
  } catch (error) {
    fail(error);
  }
}

function say(text) {
  message.textContent = text;
  message.classList.remove("error");
}

function fail(error) {
  message.textContent = error.message;
  message.classList.add("error");
}

// A stroke that starts on a cell of the ink's own value rubs out.
let stroke = null;
input.canvas.addEventListener("pointerdown", (event) => {
  if (!x || event.button) return;
  input.canvas.setPointerCapture(event.pointerId);
  point(...input.cell(event));
  const there = x.data[(place[0] * x.width + place[1]) * x.channels + input.channel];
  stroke = Math.abs(there - ink.value) < 1e-6 ? 0 : Number(ink.value);
  paint(stroke);
});
input.canvas.addEventListener("pointermove", (event) => {
  if (!x) return;
  point(...input.cell(event));
  if (stroke !== null) paint(stroke);
});
for (const kind of ["pointerup", "pointercancel"]) input.canvas.addEventListener(kind, () => { stroke = null; });
output.canvas.addEventListener("pointermove", (event) => {
  if (!y?.height) return;
  const [row, column] = output.cell(event);
  point(Math.floor(((row + 0.5) / y.height) * x.height), Math.floor(((column + 0.5) / y.width) * x.width));
});
input.canvas.addEventListener("keydown", (event) => {
  const step = { ArrowUp: [-1, 0], ArrowDown: [1, 0], ArrowLeft: [0, -1], ArrowRight: [0, 1] }[event.key];
  if (!x || !(step || event.key === " ")) return;
  event.preventDefault();
  if (!step) return paint(Number(ink.value));
  const [row, column] = [place[0] + step[0], place[1] + step[1]];
  if (row >= 0 && row < x.height && column >= 0 && column < x.width) point(row, column);
});

ink.addEventListener("input", () => { element("ink-value").textContent = Number(ink.value).toFixed(2); });
for (const field of [height, width]) field.addEventListener("change", resize);
element("example").addEventListener("click", example);
element("clear").addEventListener("click", () => take(grid(x.height, x.width, x.channels)));
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
values.addEventListener("toggle", () => { if (y) values.querySelector("pre").textContent = numbers(); });
element("save").addEventListener("click", () => {
  const link = document.createElement("a");
  link.href = URL.createObjectURL(new Blob([numbers()], { type: "text/csv" }));
  link.download = "prediction.csv";
  link.click();
  URL.revokeObjectURL(link.href);
});

start();
