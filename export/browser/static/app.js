// The page: runs the model on the grid that the user draws or opens, and shows the prediction next to it.
import { readGrid } from "./files.js";
import { cropOrPad, makeGrid } from "./grid.js";
import { HeatMap, formatNumber } from "./heatmap.js";
import { loadModel } from "./model.js";
import { Prediction, channelNames } from "./prediction.js";

const POSITIONS = 512 * 512; // of a grid with free extents; a page is the wrong tool for larger ones

const element = (id) => document.getElementById(id);
const [ink, message, target] = ["ink", "message", "target"].map(element);
const fields = ["height", "width"].map(element);
const input = new HeatMap(element("input"), showInput);

let model; // the result of loadModel()
let prediction; // what shows its predictions
let x; // the input grid
let cursor = [0, 0]; // in fractions of the height and width, since a prediction may have other extents than x
let nextExample = 0;

async function start() {
  model = await loadModel();
  const { info } = model;
  const { grid, least, multiples } = info;
  document.title = element("title").textContent = info.title;
  element("facts").textContent = `Grids ${sizes()} · ${Math.ceil(model.bytes / 1024)} KiB · exported by mdlstm-tk ${info.version}`;
  element("hint").hidden = !info.isDiagonal;
  input.setChannels(info.isColour ? [] : channelNames(info.channels));
  prediction = new Prediction(element("prediction"), element("values"), info);
  fields.forEach((field, k) => {
    Object.assign(field, { min: least[k], step: multiples[k], disabled: grid[k] !== null && !info.sizes });
  });
  const extents = grid.map((own, k) => own ?? Math.max(Math.ceil(16 / multiples[k]) * multiples[k], least[k]));
  x = makeGrid(...extents, info.channels);
  await model.predict(x); // the first run includes compilation, so its time is not shown
  showExample();
  listen();
}

// The sizes of grids that the model takes, in words.
function sizes() {
  const { grid, least, multiples, sizes: isPadded } = model.info;
  const words = (extents) => extents.map((extent) => extent ?? "any").join("×");
  const isFree = grid.every((extent) => extent === null);
  return (isFree ? "of any size" : `${isPadded ? "up to" : "of"} ${words(grid)}`)
    + (Math.max(...least) > 1 ? `, at least ${words(least)}` : "")
    + (Math.max(...multiples) > 1 ? `, multiples of ${words(multiples)}` : "");
}

// Throws an error if the model does not take grids of this size.
function checkSize(...size) {
  const { grid, least, multiples, sizes: isPadded } = model.info;
  const isLarge = (extent, k) => extent >= (grid[k] === null || isPadded ? least[k] : grid[k]);
  const fits = (extent, k) => isLarge(extent, k) && extent <= (grid[k] ?? POSITIONS) && extent % multiples[k] === 0;
  if (!size.every(fits)) throw new Error(`a ${size.join("×")} grid does not fit this model, which takes grids ${sizes()}`);
  if (grid.includes(null) && size[0] * size[1] > POSITIONS)
    throw new Error(`a ${size.join("×")} grid is too large for this page, which takes up to ${POSITIONS} positions`);
}

// Replaces the input grid by one that was opened, resized or is an example, whose answer should be `expected`.
function setInput(next, expected) {
  checkSize(next.height, next.width);
  x = next;
  changed(expected);
}

// Shows the input after a change, and predicts.
function changed(expected) {
  [fields[0].value, fields[1].value] = [x.height, x.width];
  target.hidden = !expected;
  target.textContent = `Expected: ${expected}`;
  showInput();
  predict();
}

function showInput() {
  const { isColour, isGrey } = model.info;
  const pixel = (k) => [...x.data.subarray(3 * k, 3 * k + 3)];
  if (isColour) input.draw(x, (k) => pixel(k).map((value) => 255 * value), (k) => pixel(k).map(formatNumber).join(", "));
  else input.drawValues(x, input.channel, isGrey);
}

// Only one run is active at a time. If the input changes meanwhile, the model runs once more afterwards.
let isRunning = false;
let isOutdated = false;
async function predict() {
  isOutdated = true;
  if (isRunning) return;
  isRunning = true;
  while (isOutdated) {
    isOutdated = false;
    try {
      const { y, milliseconds } = await model.predict(x);
      prediction.show(y);
      showMessage(`${milliseconds.toFixed(milliseconds < 100 ? 1 : 0)} ms on this device’s CPU, one thread${warning()}`);
    } catch (error) {
      prediction.clear();
      showMessage(error.message, true);
    }
  }
  isRunning = false;
}

// As `check_scale` in mdlstm_tk/runtime/shapes.py.
function warning() {
  const [low, high] = model.info.range ?? [-Infinity, Infinity];
  const far = x.data.find((value) => value < low - (high - low) / 2 || value > high + (high - low) / 2);
  return far === undefined ? "" : `; ${far} lies far outside of [${low}, ${high}], the values of training`;
}

function showMessage(text, isError = false) {
  message.textContent = text;
  message.classList.toggle("error", isError);
}

// Does what the user asked for, and shows the error if that fails.
async function attempt(action) {
  try {
    await action();
  } catch (error) {
    showMessage(error.message, true);
  }
}

// The next of the examples, which the exporter took from the validation data; random numbers if it had none.
function showExample() {
  const { examples } = model;
  if (!examples.length) return setInput({ ...x, data: x.data.map(Math.random) });
  const { x: next, target: expected } = examples[nextExample++ % examples.length];
  return setInput({ ...next, data: next.data.slice() }, expected);
}

function resize() {
  const size = fields.map((field) => Math.floor(field.value));
  [fields[0].value, fields[1].value] = [x.height, x.width]; // unless the model takes the size
  checkSize(...size);
  setInput(cropOrPad(x, ...size));
}

const openFile = (file) => attempt(async () => file && setInput(await readGrid(file, model.info)));

function moveCursor(place) {
  cursor = place;
  input.moveCursor(place);
  prediction.map.moveCursor(place);
}

// The part of x.data under the cursor that drawing changes: one channel, or all of an image in colours.
function drawnValues() {
  const { isColour } = model.info;
  const position = Math.floor(cursor[0] * x.height) * x.width + Math.floor(cursor[1] * x.width);
  const first = position * x.channels + (isColour ? 0 : input.channel);
  return x.data.subarray(first, first + (isColour ? 3 : 1));
}

function paint(value) {
  drawnValues().fill(value);
  changed();
}

// Listens to the user, once there is a model.
function listen() {
  let stroke = null; // the value that is being drawn
  input.canvas.addEventListener("pointerdown", (event) => {
    if (event.button) return;
    input.canvas.setPointerCapture(event.pointerId);
    moveCursor(input.placeOf(event));
    // A stroke that starts on a position that already has the ink's value erases instead.
    stroke = drawnValues().every((value) => Math.abs(value - ink.value) < 1e-6) ? 0 : Number(ink.value);
    paint(stroke);
  });
  input.canvas.addEventListener("pointermove", (event) => {
    moveCursor(input.placeOf(event));
    if (stroke !== null) paint(stroke);
  });
  for (const kind of ["pointerup", "pointercancel"]) input.canvas.addEventListener(kind, () => { stroke = null; });
  prediction.map.canvas.addEventListener("pointermove", (event) => moveCursor(prediction.map.placeOf(event)));
  input.canvas.addEventListener("keydown", (event) => {
    const step = { ArrowUp: [-1, 0], ArrowDown: [1, 0], ArrowLeft: [0, -1], ArrowRight: [0, 1], " ": [0, 0] }[event.key];
    if (!step) return;
    event.preventDefault();
    const move = (extent, k) => Math.min(Math.max(Math.floor(cursor[k] * extent) + step[k], 0), extent - 1);
    moveCursor([x.height, x.width].map((extent, k) => (move(extent, k) + 0.5) / extent));
    if (event.key === " ") paint(Number(ink.value));
  });
  ink.addEventListener("input", () => { element("ink-value").textContent = Number(ink.value).toFixed(2); });
  for (const field of fields) field.addEventListener("change", () => attempt(resize));
  const actions = { example: showExample, clear: () => setInput(makeGrid(x.height, x.width, x.channels)), open: () => element("file").click() };
  for (const [id, action] of Object.entries(actions)) {
    element(id).addEventListener("click", () => attempt(action));
    element(id).disabled = false;
  }
  element("file").addEventListener("change", (event) => openFile(event.target.files[0]).then(() => { event.target.value = ""; }));
  document.addEventListener("dragover", (event) => event.preventDefault());
  document.addEventListener("drop", (event) => {
    event.preventDefault();
    openFile(event.dataTransfer.files[0]);
  });
}

attempt(start);
