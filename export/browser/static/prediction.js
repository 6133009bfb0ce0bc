// Shows a prediction in the terms of the task: numbers in a heat map, a label with its probability, a mask in
// colours with a legend, or a text.
import { checkScores, classIndices, logistic, probabilities, transcript } from "./answers.js";
import { toCsv } from "./files.js";
import { HeatMap, formatNumber } from "./heatmap.js";
import { makeGrid } from "./grid.js";

const MAX_BARS = 10; // classes that are listed, the most likely ones first
const percent = (probability) => `${(100 * probability).toFixed(1)} %`;

// The colour of each class: its colour in the palette of the training masks, or else one of a circle of hues,
// in steps of the golden angle so that neighbours differ.
function classColours(info) {
  return Array.from({ length: info.outputs }, (_, k) => {
    if (info.maskPalette) return info.maskPalette.slice(3 * k, 3 * k + 3);
    if (k === 0) return [40, 44, 52];
    const hue = (k * 137.5 + 60) % 360;
    const channel = (offset) => { // from hue, saturation 0.6 and lightness 0.6 to red, green or blue
      const place = (offset + hue / 30) % 12;
      return Math.round(255 * (0.6 - 0.24 * Math.max(-1, Math.min(place - 3, 9 - place, 1))));
    };
    return [channel(0), channel(8), channel(4)];
  });
}

export const channelNames = (count, known) => Array.from({ length: count }, (_, k) => known?.[k] ?? `${k + 1} of ${count}`);

export class Prediction {
  constructor(figure, info) {
    this.info = info;
    this.figure = figure;
    this.map = new HeatMap(figure, () => this.show(this.y));
    [this.answer, this.bars, this.legend] = [".answer", ".bars", ".legend"].map((part) => figure.querySelector(part));
    this.classes = channelNames(info.outputs, info.classes);
    this.colours = classColours(info);
    this.isMask = info.kind === "segment";
    this.probabilities = { classify: probabilities, tag: logistic }[info.kind];
    this.map.setChannels(this.isMask ? ["mask", ...this.classes.map((name) => `probability of ${name}`)] : this.classes);
  }

  // Shows y, a grid as `predict` returns it.
  show(y) {
    const isAnswer = ["classify", "tag", "transcribe"].includes(this.info.kind);
    if (isAnswer || this.isMask) checkScores(y);
    if (this.info.kind === "regress" && !y.data.every(Number.isFinite))
      throw new Error("the numbers hold NaN or infinity; the model diverged");
    this.y = y;
    const hasGrid = y.height > 0;
    for (const part of [this.map.frame, this.map.scale, this.map.value]) part.hidden = !hasGrid;
    this.map.select.hidden = !hasGrid || y.channels < 2;
    this.bars.hidden = hasGrid || this.info.kind === "transcribe";
    this.legend.hidden = !this.isMask || this.map.channel > 0;
    this.answer.hidden = !isAnswer;
    if (this.info.kind === "transcribe") this.#showText();
    else if (!hasGrid) this.#showBars();
    else if (!this.isMask) this.map.draw(y);
    else if (this.map.channel > 0) this.map.draw(probabilities(y), this.map.channel - 1);
    else this.#showMask();
  }

  // Shows nothing, after an output that is no answer.
  clear() {
    this.y = undefined;
    for (const part of [this.map.frame, this.map.scale, this.map.value, this.map.select, this.bars, this.legend, this.answer])
      part.hidden = true;
  }

  moveCursor(fractionDown, fractionAcross) {
    if (!this.y?.height) return;
    const isMask = this.isMask && this.map.channel === 0;
    const className = (row, column) => this.classes[this.mask.data[row * this.mask.width + column]];
    this.map.moveCursor(fractionDown, fractionAcross, isMask ? className : undefined);
  }

  // What the file prediction.csv holds: the chosen channel, the values of a mask, the probabilities or the text.
  csv() {
    const { info, y } = this;
    if (info.kind === "transcribe") return `${transcript(y, info)}\n`;
    if (this.probabilities) {
      const values = this.probabilities(y).data;
      return this.classes.map((name, k) => `${quote(name)},${Number(values[k].toPrecision(6))}\n`).join("");
    }
    if (!y.height) return toCsv(makeGrid(1, y.channels, 1, y.data), 0);
    if (!this.isMask) return toCsv(y, this.map.channel);
    if (this.map.channel > 0) return toCsv(probabilities(y), this.map.channel - 1);
    const value = (index) => info.maskValues?.[index] ?? index;
    return toCsv({ ...this.mask, data: Array.from(this.mask.data, value) }, 0, String); // values of 64 bits are texts
  }

  #showText() {
    const text = transcript(this.y, this.info);
    this.answer.textContent = text || "(no text)";
    this.answer.classList.toggle("empty", !text);
  }

  #showBars() {
    const isScored = Boolean(this.probabilities);
    const values = isScored ? this.probabilities(this.y).data : this.y.data;
    const order = [...values.keys()];
    const given = order.filter((k) => values[k] >= this.info.threshold); // labels, of kind tag
    if (isScored) order.sort((a, b) => values[b] - values[a]).splice(MAX_BARS);
    const [label, format] = [(k) => this.classes[k], isScored ? percent : formatNumber];
    const longest = isScored ? 1 : Math.max(1, ...values);
    this.answer.textContent = this.info.kind === "tag" ? given.map(label).join(", ") || "(no label)"
      : `${label(order[0])} ${percent(values[order[0]])}`;
    this.bars.replaceChildren(...order.map((k) => {
      const bar = Object.assign(document.createElement("li"), { textContent: `${label(k)}: ${format(values[k])}` });
      bar.style.setProperty("--share", Math.max(0, values[k] / longest));
      return bar;
    }));
  }

  #showMask() {
    this.mask = classIndices(this.y);
    this.map.drawClasses(this.mask, this.colours);
    const counts = this.classes.map(() => 0);
    this.mask.data.forEach((index) => { counts[index] += 1; });
    const present = [...counts.keys()].filter((k) => counts[k] > 0).sort((a, b) => counts[b] - counts[a]);
    this.legend.replaceChildren(...present.map((k) => {
      const share = percent(counts[k] / this.mask.data.length);
      const entry = Object.assign(document.createElement("li"), { textContent: `${this.classes[k]} ${share}` });
      entry.style.setProperty("--colour", `rgb(${this.colours[k].join(" ")})`);
      return entry;
    }));
  }
}

// A field of a CSV file.
const quote = (text) => (/[",\r\n]/.test(text) ? `"${text.replaceAll('"', '""')}"` : text);
