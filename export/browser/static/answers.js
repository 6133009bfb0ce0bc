// What the numbers of the network mean: classes with probabilities, masks, texts. The same rules as those of
// `decode` in mdlstm_tk/kinds/.
import { makeGrid } from "./grid.js";
import { reorder } from "./text_order.js";

// The index of the largest of `count` numbers, the first one if several are equal.
function largest(data, start, count) {
  let best = 0;
  for (let k = 1; k < count; k++) if (data[start + k] > data[start + best]) best = k;
  return best;
}

// Throws an error if the scores do not say which class is the most likely one.
export function checkScores(y) {
  for (let start = 0; start < y.data.length; start += y.channels) {
    const best = y.data.subarray(start, start + y.channels).reduce((a, b) => Math.max(a, b)); // NaN if one is NaN
    if (!Number.isFinite(best)) throw new Error("the scores of the classes hold NaN or infinity; the model diverged");
  }
}

// The softmax over the channels of each position.
export function probabilities(y) {
  const result = makeGrid(y.height, y.width, y.channels, Float32Array.from(y.data));
  for (let start = 0; start < y.data.length; start += y.channels) {
    const values = result.data.subarray(start, start + y.channels);
    const maximum = values.reduce((a, b) => Math.max(a, b));
    values.forEach((value, k) => { values[k] = Math.exp(value - maximum); });
    const total = values.reduce((a, b) => a + b);
    values.forEach((value, k) => { values[k] = value / total; });
  }
  return result;
}

// The probability of each label, whatever the others are.
export function logistic(y) {
  return makeGrid(y.height, y.width, y.channels, Float32Array.from(y.data, (value) => 0.5 + 0.5 * Math.tanh(0.5 * value)));
}

// The index of the most likely class at each position, as a grid with one channel.
export function classIndices(y) {
  const indices = Float32Array.from({ length: y.data.length / y.channels }, (_, k) =>
    largest(y.data, k * y.channels, y.channels));
  return makeGrid(y.height, y.width, 1, indices);
}

// The text by the best path of CTC: the most likely output of each step, without repeats and blanks (output 0).
// y has one row, whose columns are the steps.
export function transcript(y, { classes, bidirectional, textDirection }) {
  const path = [...classIndices(y).data];
  const outputs = path.filter((output, step) => output > 0 && output !== path[step - 1]);
  const characters = outputs.map((output) => classes[output - 1]);
  if (!textDirection) return characters.join("");
  return reorder(characters, outputs.map((output) => bidirectional[output - 1]), textDirection);
}
