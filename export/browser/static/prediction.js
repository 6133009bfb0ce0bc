// Shows a prediction in the terms of the task: numbers in a heat map, labels with their probabilities, a mask in
// colours with a legend, or a text; and as numbers below, when these are unfolded.
import { checkScores, classIndices, logistic, probabilities, transcript } from "./answers.js";
import { HeatMap, formatNumber } from "./heatmap.js";

const MAX_BARS = 10; // classes that are listed, the most likely ones first
const percent = (probability) => `${(100 * probability).toFixed(1)} %`;
// Integers are written as they are. Nine significant digits identify a float32 exactly.
const exact = (value) => (Number.isInteger(value) ? value : Number(value.toPrecision(9)));
const rows = (values, width) => values.map((value, k) => value + ((k + 1) % width ? "\t" : "\n")).join("");

export const channelNames = (count, known) => Array.from({ length: count }, (_, k) => known?.[k] ?? `${k + 1} of ${count}`);

export class Prediction {
  #y; // the last output, while it is shown

  constructor(figure, numbers, info) {
    [this.info, this.numbers] = [info, numbers];
    [this.answer, this.bars, this.legend] = [".answer", ".bars", ".legend"].map((part) => figure.querySelector(part));
    this.map = new HeatMap(figure, () => this.show(this.#y));
    this.names = channelNames(info.outputs, info.classes);
    this.map.setChannels(info.kind === "segment" ? ["mask", ...this.names.map((name) => `probability of ${name}`)] : this.names);
    numbers.addEventListener("toggle", () => this.#y && this.show(this.#y));
  }

  // Shows nothing, after an output that is no answer.
  clear() {
    this.#y = undefined;
    this.map.hide();
    for (const part of [this.answer, this.bars, this.legend]) part.hidden = true;
    this.#write("");
  }

  // Shows y, a grid as `predict` returns it.
  show(y) {
    const { kind } = this.info;
    this.clear();
    if (["classify", "tag", "segment", "transcribe"].includes(kind)) checkScores(y);
    else if (kind === "regress" && !y.data.every(Number.isFinite))
      throw new Error("the numbers hold NaN or infinity; the model diverged");
    this.#y = y;
    if (kind === "transcribe") this.#showText(transcript(y, this.info.classes));
    else if (!y.height) this.#showVector(y);
    else if (kind !== "segment") this.#showGrid(y, this.map.channel);
    else if (this.map.channel > 0) this.#showGrid(probabilities(y), this.map.channel - 1);
    else this.#showMask(y, classIndices(y));
  }

  #write(text) {
    this.numbers.querySelector("pre").textContent = this.numbers.open ? text : "";
  }

  #answer(text, isEmpty) {
    this.answer.hidden = false;
    this.answer.textContent = text;
    this.answer.classList.toggle("empty", isEmpty);
  }

  #showText(text) {
    this.#answer(text || "(no text)", !text);
    this.#write(text);
  }

  #showVector(y) {
    const { kind, threshold } = this.info;
    const scores = { classify: probabilities, tag: logistic }[kind];
    const values = (scores ? scores(y) : y).data;
    const order = [...values.keys()];
    if (scores) order.sort((a, b) => values[b] - values[a]);
    if (kind === "classify") this.#answer(`${this.names[order[0]]} ${percent(values[order[0]])}`, false);
    const labels = this.names.filter((_, k) => values[k] >= threshold);
    if (kind === "tag") this.#answer(labels.join(", ") || "(no label)", !labels.length);
    const [format, longest] = scores ? [percent, 1] : [formatNumber, Math.max(1, ...values)];
    this.#list(this.bars, order.slice(0, scores ? MAX_BARS : undefined), (k) => `${this.names[k]}: ${format(values[k])}`,
      "--share", (k) => Math.max(0, values[k] / longest));
    this.#write(this.names.map((name, k) => `${name}\t${exact(values[k])}\n`).join(""));
  }

  #showGrid(y, channel) {
    this.map.drawValues(y, channel);
    this.#write(rows(Array.from(y.data.filter((_, k) => k % y.channels === channel), exact), y.width));
  }

  #showMask(y, indices) {
    const { palette, maskValues } = this.info;
    this.map.draw(y, (k) => palette[indices[k]], (k) => this.names[indices[k]]);
    const counts = this.names.map(() => 0);
    for (const index of indices) counts[index] += 1;
    const present = [...counts.keys()].filter((k) => counts[k] > 0).sort((a, b) => counts[b] - counts[a]);
    this.#list(this.legend, present, (k) => `${this.names[k]} ${percent(counts[k] / indices.length)}`,
      "--colour", (k) => `rgb(${palette[k].join(" ")})`);
    this.#write(rows(indices.map((index) => maskValues[index]), y.width));
  }

  // Fills a list with an entry for each class, and a property of its style.
  #list(list, classes, textOf, property, valueOf) {
    list.hidden = false;
    list.replaceChildren(...classes.map((k) => {
      const entry = Object.assign(document.createElement("li"), { textContent: textOf(k) });
      entry.style.setProperty(property, valueOf(k));
      return entry;
    }));
  }
}
