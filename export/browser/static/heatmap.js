// Shows a grid as a heat map. Each position is one canvas pixel, which the style sheet enlarges.

// The viridis colour map at nine evenly spaced points; colours in between are interpolated.
const VIRIDIS = [[68, 1, 84], [71, 44, 122], [59, 81, 139], [44, 113, 142], [33, 144, 141],
  [39, 173, 129], [92, 200, 99], [170, 220, 50], [253, 231, 37]];

// The colour of a value between 0 and 1; NaN counts as 0.
function colour(value) {
  const point = Math.min(Math.max(value || 0, 0), 1) * (VIRIDIS.length - 1);
  const lower = Math.min(Math.floor(point), VIRIDIS.length - 2);
  return VIRIDIS[lower].map((level, k) => level + (VIRIDIS[lower + 1][k] - level) * (point - lower));
}

const grey = (value) => Array(3).fill(255 * Math.min(Math.max(value || 0, 0), 1));

export const formatNumber = (value) => (Math.abs(value) >= 1e-3 || value === 0 ? value.toFixed(4) : value.toExponential(2));

export class HeatMap {
  constructor(figure, onChannelChange) {
    this.canvas = figure.querySelector("canvas");
    this.frame = figure.querySelector(".frame");
    this.cursor = figure.querySelector(".cursor");
    this.scale = figure.querySelector(".scale");
    this.value = figure.querySelector(".value");
    this.select = figure.querySelector("select");
    this.select.addEventListener("change", onChannelChange);
  }

  // Offers the channels to choose from, if there are several.
  setChannels(names) {
    this.select.replaceChildren(...names.map((name, k) => new Option(name, k)));
    this.select.hidden = names.length < 2;
  }

  get channel() {
    return Number(this.select.value);
  }

  // Draws one channel of a grid, in grey if it is an image. The colours span the range from 0 to 1, extended to the channel's finite minimum
  // and maximum.
  draw(x, channel = this.channel, isGrey = false) {
    this.grid = x;
    this.shownChannel = channel;
    const values = Float32Array.from({ length: x.height * x.width }, (_, k) => x.data[k * x.channels + channel]);
    const [low, high] = values.filter(Number.isFinite).reduce(([min, max], v) => [Math.min(min, v), Math.max(max, v)], [0, 1]);
    this.#paint(x, (k) => (isGrey ? grey : colour)((values[k] - low) / (high - low)));
    this.scale.hidden = false;
    this.scale.classList.toggle("grey", isGrey);
    this.scale.children[0].textContent = formatNumber(low).replace(/\.0+$/, "");
    this.scale.children[1].textContent = formatNumber(high).replace(/\.0+$/, "");
  }

  // Draws a grid of class indices in the colours of the classes.
  drawClasses(indices, colours) {
    this.grid = indices;
    this.#paint(indices, (k) => colours[indices.data[k]]);
    this.scale.hidden = true;
  }

  // Draws a grid whose three channels are red, green and blue from 0 to 1.
  drawImage(x) {
    this.grid = x;
    this.#paint(x, (k) => x.data.subarray(3 * k, 3 * k + 3).map((value) => 255 * value));
    this.scale.hidden = true;
  }

  // Fills the canvas; colourOf returns red, green and blue of a position, from 0 to 255.
  #paint({ height, width }, colourOf) {
    const image = new ImageData(width, height);
    for (let k = 0; k < height * width; k++) image.data.set([...colourOf(k), 255], 4 * k);
    Object.assign(this.canvas, { width, height }).getContext("2d").putImageData(image, 0, 0);
    this.frame.style.setProperty("--aspect", width / height);
  }

  // The row and column under the pointer, or the nearest ones if it is outside the canvas.
  positionOf(event) {
    const box = this.canvas.getBoundingClientRect();
    const index = (fraction, extent) => Math.min(Math.max(Math.floor(fraction * extent), 0), extent - 1);
    return [index((event.clientY - box.top) / box.height, this.grid.height),
      index((event.clientX - box.left) / box.width, this.grid.width)];
  }

  // Moves the cursor to a position, given in fractions of the height and width, and shows its value, or what
  // describe(row, column) returns.
  moveCursor(fractionDown, fractionAcross, describe = (row, column) => this.#valueAt(row, column)) {
    const { height, width } = this.grid;
    const [row, column] = [Math.floor(fractionDown * height), Math.floor(fractionAcross * width)];
    this.cursor.hidden = false;
    Object.assign(this.cursor.style, { top: `${(100 * row) / height}%`, left: `${(100 * column) / width}%`,
      height: `${100 / height}%`, width: `${100 / width}%` });
    this.value.textContent = `row ${row}, column ${column}: ${describe(row, column)}`;
  }

  #valueAt(row, column) {
    const { width, channels, data } = this.grid;
    return formatNumber(data[(row * width + column) * channels + this.shownChannel]);
  }
}
