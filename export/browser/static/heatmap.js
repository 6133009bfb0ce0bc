// A grid as a heat map: one canvas pixel a cell, enlarged by the style sheet.

// viridis at nine evenly spaced places; colours between are interpolated
const VIRIDIS = [[68, 1, 84], [71, 44, 122], [59, 81, 139], [44, 113, 142], [33, 144, 141],
  [39, 173, 129], [92, 200, 99], [170, 220, 50], [253, 231, 37]];

function colour(share) {
  const place = Math.min(Math.max(share, 0), 1) * (VIRIDIS.length - 1);
  const below = Math.min(Math.floor(place), VIRIDIS.length - 2);
  return VIRIDIS[below].map((level, k) => level + (VIRIDIS[below + 1][k] - level) * (place - below));
}

export const number = (value) => (Math.abs(value) >= 1e-3 || value === 0 ? value.toFixed(4) : value.toExponential(2));

export class HeatMap {
  constructor(figure, channelChanged) {
    this.canvas = figure.querySelector("canvas");
    this.frame = figure.querySelector(".frame");
    this.cursor = figure.querySelector(".cursor");
    this.scale = figure.querySelector(".scale");
    this.value = figure.querySelector(".value");
    this.select = figure.querySelector("select");
    this.select.addEventListener("change", channelChanged);
  }

  // Names to choose from where a position holds more than one number.
  choices(names) {
    this.select.replaceChildren(...names.map((name, k) => new Option(name, k)));
    this.select.hidden = names.length < 2;
  }

  get channel() {
    return Number(this.select.value);
  }

  // Draws a grid; the colours run from 0 to 1, or farther if its numbers do.
  show(x) {
    this.grid = x;
    const values = Float32Array.from({ length: x.height * x.width }, (_, k) => x.data[k * x.channels + this.channel]);
    const [low, high] = values.reduce(([least, most], v) => [Math.min(least, v), Math.max(most, v)], [0, 1]);
    const picture = new ImageData(x.width, x.height);
    values.forEach((value, k) => picture.data.set([...colour((value - low) / (high - low)), 255], 4 * k));
    Object.assign(this.canvas, { width: x.width, height: x.height }).getContext("2d").putImageData(picture, 0, 0);
    this.frame.style.setProperty("--aspect", x.width / x.height);
    this.scale.children[0].textContent = number(low).replace(/\.0+$/, "");
    this.scale.children[1].textContent = number(high).replace(/\.0+$/, "");
  }

  // The row and column under a pointer, kept inside.
  cell(event) {
    const box = this.canvas.getBoundingClientRect();
    const inside = (share, extent) => Math.min(Math.max(Math.floor(share * extent), 0), extent - 1);
    return [inside((event.clientY - box.top) / box.height, this.grid.height),
      inside((event.clientX - box.left) / box.width, this.grid.width)];
  }

  // Marks what lies at a place, given in shares of the height and width, and says what it is.
  point(down, across) {
    const { height, width, channels, data } = this.grid;
    const [row, column] = [Math.floor(down * height), Math.floor(across * width)];
    this.cursor.hidden = false;
    Object.assign(this.cursor.style, { top: `${(100 * row) / height}%`, left: `${(100 * column) / width}%`,
      height: `${100 / height}%`, width: `${100 / width}%` });
    const value = data[(row * width + column) * channels + this.channel];
    this.value.textContent = `row ${row}, column ${column}: ${number(value)}`;
  }
}
