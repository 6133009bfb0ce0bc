// A grid of numbers; data is a Float32Array, or a Float64Array of integers, of shape (height, width, channels) in C
// order.
export const makeGrid = (height, width, channels, data = new Float32Array(height * width * channels)) => ({
  height, width, channels, data,
});

// A grid in another size: rows and columns are cut off at the end, or zeros are added there.
export function cropOrPad(x, height, width) {
  const result = makeGrid(height, width, x.channels, new x.data.constructor(height * width * x.channels));
  const rowLength = Math.min(width, x.width) * x.channels;
  for (let r = 0; r < Math.min(height, x.height); r++) {
    const start = r * x.width * x.channels;
    result.data.set(x.data.subarray(start, start + rowLength), r * width * x.channels);
  }
  return result;
}
