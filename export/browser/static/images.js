// Reads image files as mdlstm_tk/io/images.py does, so that the model sees the same numbers as in training.
// Browsers decode to 8 bits per channel.
import { makeGrid } from "./grid.js";

const LUMA = [19595, 38470, 7471]; // of 65536, as Pillow rounds the weights of ITU-R 601

// Reads an image with the channels and the size that the model's preprocessing asks for.
export async function readImage(file, { channels, preprocessing, unitRange }) {
  const pixels = await decode(file);
  if (channels !== 1 && channels !== 3 || !unitRange)
    throw new Error(`${file.name} is an image, and the model takes ${unitRange ? `${channels} channels` : "values outside of [0, 1]"}; open a .npy file`);
  const x = toGrid(pixels, channels);
  return resize(x, ...resizedExtents(x.height, x.width, preprocessing?.resize));
}

// The pixels as bytes (red, green, blue, opacity), transparent ones blended with white.
async function decode(file) {
  const head = new Uint8Array(await file.slice(0, 25).arrayBuffer());
  if (String(head.subarray(1, 4)) === "80,78,71" && head[24] === 16) // a PNG, and its bits per channel
    throw new Error(`${file.name} has 16 bits per channel, of which browsers read 8; save it with 8 bits, or as .npy`);
  const image = await createImageBitmap(file, { colorSpaceConversion: "none" }).catch(() => {
    throw new Error(`${file.name} is neither a .npy array nor an image that this browser reads`);
  });
  const { height, width } = image;
  const context = Object.assign(document.createElement("canvas"), { height, width }).getContext("2d");
  context.fillStyle = "#fff";
  context.fillRect(0, 0, width, height);
  context.drawImage(image, 0, 0);
  const pixels = context.getImageData(0, 0, width, height);
  if (pixels.data.at(-1) !== 255) // a canvas beyond a limit of the browser stays transparent
    throw new Error(`${file.name} has ${height}×${width} pixels, too many for this browser; make it smaller`);
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

// The extents that an image gets; one of those to resize to may be null, and follows from its aspect.
export function resizedExtents(height, width, extents) {
  const [newHeight, newWidth] = extents ?? [height, width];
  return [newHeight ?? Math.max(1, Math.floor((2 * height * newWidth + width) / (2 * width))),
    newWidth ?? Math.max(1, Math.floor((2 * width * newHeight + height) / (2 * height)))];
}

// Resizes bilinearly and with antialiasing, as Pillow does: first along the rows, then along the columns.
export function resize(x, height, width) {
  if (x.height === height && x.width === width) return x;
  return resizeAxis(resizeAxis(x, x.height, width), height, width);
}

// Resizes along the axis whose extent differs. In memory, `inner` numbers follow each other at each of its positions.
function resizeAxis(x, height, width) {
  const isWidth = width !== x.width;
  const [extent, newExtent] = isWidth ? [x.width, width] : [x.height, height];
  const inner = isWidth ? x.channels : x.width * x.channels;
  const result = makeGrid(height, width, x.channels);
  const taps = weights(extent, newExtent);
  for (let outer = 0; outer < (isWidth ? height : 1); outer++) taps.forEach(({ first, values }, position) => {
    for (let k = 0; k < inner; k++) result.data[(outer * newExtent + position) * inner + k] = values.reduce(
      (sum, weight, tap) => sum + weight * x.data[(outer * extent + first + tap) * inner + k], 0);
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
    const values = Array.from({ length: end - first }, (_, k) => Math.max(0, 1 - Math.abs((first + k - centre + 0.5) / support)));
    const total = values.reduce((sum, value) => sum + value, 0);
    return { first, values: values.map((value) => value / total) };
  });
}
