// Reads image files as mdlstm_tk/io/images.py does, so that the model sees the same numbers as in
// training. Browsers decode to 8 bits per channel and know no TIFF.
import { makeGrid } from "./grid.js";

export const IMAGE_TYPES = ["png", "jpg", "jpeg", "gif", "webp", "bmp"];
const LUMA = [19595, 38470, 7471]; // of 65536, as Pillow rounds the weights of ITU-R 601

// Reads an image with the channels and the size that the model's preprocessing asks for.
export async function readImage(file, info) {
  const channels = info.preprocessing?.channels ?? info.channels;
  if (channels !== 1 && channels !== 3)
    throw new Error(`${file.name} is an image, and the model takes ${channels} channels at each position; open a .npy file`);
  if (info.unitRange === false)
    throw new Error(`${file.name} is an image whose values are scaled to [0, 1], but the model was trained on others; open a .npy file`);
  const x = toGrid(await decode(file), channels);
  return resize(x, ...resizedExtents(x.height, x.width, info.preprocessing?.resize));
}

// The extents that an image of these extents gets; one of those to resize to may be null, and follows from
// the aspect of the image.
export function resizedExtents(height, width, extents) {
  const [newHeight, newWidth] = extents ?? [height, width];
  return [
    newHeight ?? Math.max(1, Math.floor((2 * height * newWidth + width) / (2 * width))),
    newWidth ?? Math.max(1, Math.floor((2 * width * newHeight + height) / (2 * height))),
  ];
}

// The pixels as bytes (red, green, blue, opacity), transparent ones blended with white.
async function decode(file) {
  const head = new Uint8Array(await file.slice(0, 25).arrayBuffer());
  const isPng = head[1] === 80 && head[2] === 78 && head[3] === 71;
  if (isPng && head[24] === 16)
    throw new Error(`${file.name} has 16 bits per channel, of which browsers read 8; save it with 8 bits, or as .npy with values from 0 to 1`);
  const image = await createImageBitmap(file, { colorSpaceConversion: "none" }).catch(() => {
    throw new Error(`${file.name} is not an image that this browser reads`);
  });
  const { height, width } = image;
  const context = Object.assign(document.createElement("canvas"), { height, width }).getContext("2d");
  context.fillStyle = "#fff";
  context.fillRect(0, 0, width, height);
  context.drawImage(image, 0, 0);
  const pixels = context.getImageData(0, 0, width, height);
  if (pixels.data.at(-1) !== 255) // a canvas beyond a limit of the browser stays transparent
    throw new Error(`${file.name} has ${height}×${width} pixels, too large for this browser; make it smaller`);
  return pixels;
}

// Numbers from 0 to 1. Colours become grey by their luma if there is one channel.
function toGrid({ height, width, data }, channels) {
  const x = makeGrid(height, width, channels);
  for (let k = 0; k < height * width; k++) {
    const pixel = data.subarray(4 * k, 4 * k + 3);
    if (channels === 3) pixel.forEach((level, c) => { x.data[3 * k + c] = level / 255; });
    else x.data[k] = ((LUMA[0] * pixel[0] + LUMA[1] * pixel[1] + LUMA[2] * pixel[2] + 32768) >> 16) / 255;
  }
  return x;
}

// Resizes bilinearly and with antialiasing, as Pillow does: first along the rows, then along the columns.
export function resize(x, height, width) {
  if (x.height === height && x.width === width) return x;
  const { channels } = x;
  const wide = makeGrid(x.height, width, channels);
  weights(x.width, width).forEach(({ first, values }, s) => {
    for (let r = 0; r < x.height; r++) for (let c = 0; c < channels; c++)
      wide.data[(r * width + s) * channels + c] = values.reduce(
        (sum, weight, k) => sum + weight * x.data[(r * x.width + first + k) * channels + c], 0);
  });
  const result = makeGrid(height, width, channels);
  const rowLength = width * channels;
  weights(x.height, height).forEach(({ first, values }, r) => {
    for (let k = 0; k < rowLength; k++)
      result.data[r * rowLength + k] = values.reduce(
        (sum, weight, j) => sum + weight * wide.data[(first + j) * rowLength + k], 0);
  });
  return result;
}

// For each position of the result, the first position it is made from, and the weights from there on: a
// triangle, which is as wide as two positions of the coarser of both grids.
function weights(oldExtent, newExtent) {
  const scale = oldExtent / newExtent;
  const support = Math.max(scale, 1);
  return Array.from({ length: newExtent }, (_, position) => {
    const centre = (position + 0.5) * scale;
    const first = Math.max(Math.floor(centre - support + 0.5), 0);
    const end = Math.min(Math.floor(centre + support + 0.5), oldExtent);
    const values = Array.from({ length: end - first }, (_, k) =>
      Math.max(0, 1 - Math.abs((first + k - centre + 0.5) / support)));
    const total = values.reduce((sum, value) => sum + value, 0);
    return { first, values: values.map((value) => value / total) };
  });
}
