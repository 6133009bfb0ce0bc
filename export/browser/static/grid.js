// A grid of numbers: data has the shape (height, width, channels), in C order.
export const makeGrid = (height, width, channels, data = new Float32Array(height * width * channels)) =>
  ({ height, width, channels, data });

// A grid in another size: rows and columns are cut off at the end, or zeros are added there.
export function cropOrPad(x, height, width) {
  const result = makeGrid(height, width, x.channels, new x.data.constructor(height * width * x.channels));
  for (let row = 0; row < Math.min(height, x.height); row++) {
    const start = row * x.width * x.channels;
    result.data.set(x.data.subarray(start, start + Math.min(width, x.width) * x.channels), row * width * x.channels);
  }
  return result;
}
