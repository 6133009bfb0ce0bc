// What the numbers of the network mean: classes with probabilities, masks, texts. The same rules as those of
// `decode` in mdlstm_tk/kinds/.
import { makeGrid } from "./grid.js";

// The numbers of each position.
const positionsOf = ({ data, channels }) =>
  Array.from({ length: data.length / channels }, (_, k) => data.subarray(k * channels, (k + 1) * channels));

const largest = (values) => values.reduce((a, b) => Math.max(a, b)); // NaN if one of them is

// Throws an error if the scores do not say which class is the most likely one.
export function checkScores(y) {
  if (!positionsOf(y).map(largest).every(Number.isFinite))
    throw new Error("the scores of the classes hold NaN or infinity; the model diverged");
}

// The softmax over the channels of each position.
export function probabilities(y) {
  const result = makeGrid(y.height, y.width, y.channels, Float32Array.from(y.data));
  for (const values of positionsOf(result)) {
    const maximum = largest(values);
    const total = values.reduce((sum, value) => sum + Math.exp(value - maximum), 0);
    values.forEach((value, k) => { values[k] = Math.exp(value - maximum) / total; });
  }
  return result;
}

// The probability of each label, whatever the others are.
export const logistic = (y) => ({ ...y, data: Float32Array.from(y.data, (value) => 0.5 + 0.5 * Math.tanh(0.5 * value)) });

// The index of the most likely class at each position, the first one if several are equal.
export const classIndices = (y) => positionsOf(y).map((values) => values.indexOf(largest(values)));

// The text by the best path of CTC: the most likely output of each step, without repeats and blanks (output 0).
// y has one row, whose columns are the steps.
export function transcript(y, classes) {
  const path = classIndices(y);
  return path.map((output, step) => (output > 0 && output !== path[step - 1] ? classes[output - 1] : "")).join("");
}
