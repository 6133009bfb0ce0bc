// The page: lets the network draw a picture, or complete what the user has drawn, and shows it pixel by pixel.
import { loadModel } from "./model.js";

const element = (id) => document.getElementById(id);
const [draw, clear, ink, colour, temperature, message] = ["draw", "clear", "ink", "colour", "temperature", "message"].map(element);
const canvas = document.querySelector("canvas");
const [cursorMark, boundary] = [".cursor", ".boundary"].map((selector) => document.querySelector(selector));
const SECONDS = 1.5; // that the animation of a picture takes, about
const NOT_DRAWN = [127, 137, 156];

let model; // the result of loadModel()
let values; // (height, width, channels) in [0, 1]
let userRows = 0; // upper rows that the user has drawn
let visiblePixels = 0; // that the animation has reached, the user's included
let cursor = [0, 0];
let drawing = 0; // the number of the drawing in progress; a new one ends it

async function start() {
  try {
    model = await loadModel();
  } catch (error) {
    return showError(error);
  }
  const { height, width, channels, levels } = model;
  document.title = element("title").textContent = model.name;
  element("facts").textContent = [`${height}×${width}`, channels === 3 ? "colours" : levels === 2 ? "black and white" : `${levels} levels of grey`,
    `${Math.ceil(model.bytes / 1024)} KiB`, `exported by mdlstm-tk ${model.version}`].join(" · ");
  ink.step = 1 / (levels - 1);
  ink.parentElement.hidden = levels === 2 || channels === 3;
  colour.parentElement.hidden = channels !== 3;
  Object.assign(canvas, { width, height });
  canvas.parentElement.style.setProperty("--aspect", width / height);
  clearPicture();
  // The first run includes compilation, so its time is not shown.
  await model.draw(values.slice().fill(-1)).catch(showError);
  draw.disabled = clear.disabled = false;
  return drawPicture();
}

// Draws all rows below the user's, then the animation of what is new.
async function drawPicture() {
  const number = ++drawing;
  const input = values.slice().fill(-1, userRows * model.width * model.channels);
  try {
    const result = await model.draw(input, Number(temperature.value), () => number !== drawing);
    if (!result) return;
    values = result.values;
    showNumbers();
    await animate(number);
    if (number === drawing) showMessage(`Drawn in ${result.milliseconds.toFixed(0)} ms on this device’s CPU, one thread`);
  } catch (error) {
    showError(error);
  }
}

async function animate(number) {
  const [first, last] = [userRows * model.width, model.height * model.width];
  const begin = performance.now();
  const still = matchMedia("(prefers-reduced-motion: reduce)").matches;
  do {
    const now = await new Promise(requestAnimationFrame);
    if (number !== drawing) return;
    const share = still ? 1 : Math.max(0, now - begin) / (1000 * SECONDS);
    visiblePixels = Math.min(last, first + Math.floor(share * (last - first)));
    show();
  } while (visiblePixels < last);
}

function show() {
  const { height, width, channels } = model;
  const context = canvas.getContext("2d");
  const image = context.createImageData(width, height);
  for (let k = 0; k < height * width; k++) {
    const pixel = k < visiblePixels ? [0, 1, 2].map((c) => 255 * values[k * channels + (channels === 3 ? c : 0)]) : NOT_DRAWN;
    image.data.set([...pixel, 255], 4 * k);
  }
  context.putImageData(image, 0, 0);
  boundary.hidden = !userRows || userRows === height;
  boundary.style.top = `${(100 * userRows) / height}%`;
}

function showNumbers() {
  const rowLength = model.width * model.channels;
  const rows = Array.from({ length: model.height }, (_, row) => values.slice(row * rowLength, (row + 1) * rowLength));
  document.querySelector("pre").textContent = rows.map((row) => [...row].map((value) => +value.toFixed(6)).join(",")).join("\n");
}

function showGiven() {
  element("given").textContent = userRows ? `${userRows} of ${model.height} rows are yours` : "Draw here with the mouse or a finger";
  draw.textContent = userRows ? "Complete" : "Draw";
}

function clearPicture() {
  drawing++;
  values = new Float32Array(model.height * model.width * model.channels);
  [userRows, visiblePixels] = [0, 0];
  show();
  showGiven();
  showNumbers();
}

// What the ink draws, as the nearest levels that the values of a pixel can have.
function inkValues() {
  const { channels, levels } = model;
  if (channels !== 3) return new Array(channels).fill(levels === 2 ? 1 : Number(ink.value));
  return [1, 3, 5].map((k) => Math.round((parseInt(colour.value.slice(k, k + 2), 16) / 255) * (levels - 1)) / (levels - 1));
}

const pixelAt = ([row, column]) => values.subarray((row * model.width + column) * model.channels).subarray(0, model.channels);

// The user has drawn in a row: it and those above are the user's, and what the network had drawn goes.
function paint(pixel) {
  drawing++;
  values.fill(0, userRows * model.width * model.channels);
  userRows = Math.max(userRows, cursor[0] + 1);
  visiblePixels = userRows * model.width;
  pixelAt(cursor).set(pixel);
  show();
  showGiven();
  showNumbers();
  showMessage("");
}

function moveCursor(row, column) {
  const { height, width } = model;
  cursor = [Math.min(Math.max(row, 0), height - 1), Math.min(Math.max(column, 0), width - 1)];
  cursorMark.hidden = false;
  Object.assign(cursorMark.style, { left: `${(100 * cursor[1]) / width}%`, top: `${(100 * cursor[0]) / height}%`,
    width: `${100 / width}%`, height: `${100 / height}%` });
}

function positionOf({ clientX, clientY }) {
  const box = canvas.getBoundingClientRect();
  return [Math.floor(((clientY - box.top) / box.height) * model.height), Math.floor(((clientX - box.left) / box.width) * model.width)];
}

function showMessage(text) {
  message.textContent = text;
  message.classList.remove("error");
}

function showError(error) {
  message.textContent = error.message;
  message.classList.add("error");
}

// A stroke that starts on a pixel of the user's that already has the ink's values erases instead.
let stroke = null; // the values that are being drawn
function inkOrEraser() {
  const isInk = cursor[0] < userRows && inkValues().every((value, c) => Math.abs(value - pixelAt(cursor)[c]) < 1e-6);
  return inkValues().map((value) => (isInk ? 0 : value));
}
canvas.addEventListener("pointerdown", (event) => {
  if (!values || event.button) return;
  canvas.setPointerCapture(event.pointerId);
  moveCursor(...positionOf(event));
  stroke = inkOrEraser();
  paint(stroke);
});
canvas.addEventListener("pointermove", (event) => {
  if (!values) return;
  moveCursor(...positionOf(event));
  if (stroke) paint(stroke);
});
for (const kind of ["pointerup", "pointercancel"]) canvas.addEventListener(kind, () => { stroke = null; });
for (const kind of ["pointerleave", "blur"]) canvas.addEventListener(kind, () => { cursorMark.hidden = true; });
canvas.addEventListener("keydown", (event) => {
  const step = { ArrowUp: [-1, 0], ArrowDown: [1, 0], ArrowLeft: [0, -1], ArrowRight: [0, 1] }[event.key];
  if (!values || !(step || event.key === " ")) return;
  event.preventDefault();
  if (step) moveCursor(cursor[0] + step[0], cursor[1] + step[1]);
  else paint(inkOrEraser());
});
draw.addEventListener("click", drawPicture);
clear.addEventListener("click", () => {
  clearPicture();
  showMessage("");
});
temperature.addEventListener("input", () => { element("temperature-value").textContent = Number(temperature.value).toFixed(2); });

start();
