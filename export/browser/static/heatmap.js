// Shows a grid as a heat map. Each position is one canvas pixel, which the style sheet enlarges.

// The viridis colour map at nine evenly spaced points; colours in between are interpolated.
const VIRIDIS = [[68, 1, 84], [71, 44, 122], [59, 81, 139], [44, 113, 142], [33, 144, 141],
  [39, 173, 129], [92, 200, 99], [170, 220, 50], [253, 231, 37]];

// The colours of a value between 0 and 1; NaN counts as 0.
const unit = (value) => Math.min(Math.max(value || 0, 0), 1);
const grey = (value) => Array(3).fill(255 * unit(value));
function viridis(value) {
  const point = unit(value) * (VIRIDIS.length - 1);
  const lower = Math.min(Math.floor(point), VIRIDIS.length - 2);
  return VIRIDIS[lower].map((level, k) => level + (VIRIDIS[lower + 1][k] - level) * (point - lower));
}

export const formatNumber = (value) => (Math.abs(value) >= 1e-3 || value === 0 ? value.toFixed(4) : value.toExponential(2));

export class HeatMap {
  #grid = { height: 0, width: 0 }; // what is shown
  #describe; // the value at position k, in words
  #place; // of the cursor, in fractions of the height and width

  constructor(figure, onChannelChange) {
    [this.canvas, this.frame, this.cursor, this.scale, this.value, this.select] =
      ["canvas", ".frame", ".cursor", ".scale", ".value", "select"].map((part) => figure.querySelector(part));
    this.select.addEventListener("change", onChannelChange);
  }

  // Offers the channels to choose from, if there are several.
  setChannels(names) {
    this.select.replaceChildren(...names.map((name, k) => new Option(name, k)));
  }

  get channel() {
    return Number(this.select.value);
  }

  hide() {
    for (const part of [this.frame, this.scale, this.value, this.select]) part.hidden = true;
  }

  // Draws one channel of a grid, in grey if it is an image. The colours span the range from 0 to 1, extended to
  // the channel's finite minimum and maximum.
  drawValues(x, channel = this.channel, isGrey = false) {
    const values = x.data.filter((_, k) => k % x.channels === channel);
    const [low, high] = values.filter(Number.isFinite).reduce(([min, max], v) => [Math.min(min, v), Math.max(max, v)], [0, 1]);
    this.draw(x, (k) => (isGrey ? grey : viridis)((values[k] - low) / (high - low)), (k) => formatNumber(values[k]));
    this.scale.hidden = false;
    this.scale.classList.toggle("grey", isGrey);
    [low, high].forEach((value, k) => { this.scale.children[k].textContent = formatNumber(value).replace(/\.0+$/, ""); });
  }

  // Draws a grid: colourOf gives red, green and blue of position k, from 0 to 255, describe its value in words.
  draw({ height, width }, colourOf, describe) {
    const image = new ImageData(width, height);
    for (let k = 0; k < height * width; k++) image.data.set([...colourOf(k), 255], 4 * k);
    Object.assign(this.canvas, { width, height }).getContext("2d").putImageData(image, 0, 0);
    this.frame.style.setProperty("--aspect", width / height);
    [this.#grid, this.#describe] = [{ height, width }, describe];
    this.frame.hidden = this.value.hidden = false;
    this.scale.hidden = true;
    this.select.hidden = this.select.length < 2;
    if (this.#place) this.moveCursor(this.#place);
  }

  // Where an event happened, or the nearest place inside of the canvas, in fractions of the height and width.
  placeOf(event) {
    const box = this.canvas.getBoundingClientRect();
    const inside = (fraction) => Math.min(Math.max(fraction, 0), 1 - 1e-9);
    return [inside((event.clientY - box.top) / box.height), inside((event.clientX - box.left) / box.width)];
  }

  // Moves the cursor to the position at a place, and shows its value.
  moveCursor([down, across]) {
    this.#place = [down, across];
    if (this.frame.hidden) return;
    const { height, width } = this.#grid;
    const [row, column] = [Math.floor(down * height), Math.floor(across * width)];
    this.cursor.hidden = false;
    Object.assign(this.cursor.style, { top: `${(100 * row) / height}%`, left: `${(100 * column) / width}%`,
      height: `${100 / height}%`, width: `${100 / width}%` });
    this.value.textContent = `row ${row}, column ${column}: ${this.#describe(row * width + column)}`;
  }
}
