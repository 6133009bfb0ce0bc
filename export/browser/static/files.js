// Reads grids from .npy arrays and images. Each error message is one line.
import { makeGrid } from "./grid.js";
import { readImage } from "./images.js";

// Reads a file as a grid that has the channels of the model.
export async function readGrid(file, info) {
  const x = await (/\.npy$/i.test(file.name) ? readNpy : readImage)(file, info);
  if (x.channels !== info.channels)
    throw new Error(`${file.name} has ${x.channels} channels at each position, the model takes ${info.channels}`);
  const refused = x.data.find((value) => !(Math.abs(value) <= (info.largest ?? 3.5e38))); // NaN and infinity, too
  if (refused !== undefined)
    throw new Error(`${file.name} holds ${refused}; this model takes finite numbers${info.largest ? ` up to ${info.largest}` : ""}`);
  return x;
}

const TYPES = { b1: "Uint8", u1: "Uint8", i1: "Int8", u2: "Uint16", i2: "Int16", u4: "Uint32", i4: "Int32",
  u8: "BigUint64", i8: "BigInt64", f2: "Float16", f4: "Float32", f8: "Float64" };

async function readNpy(file, { channelsLast }) {
  const view = new DataView(await file.arrayBuffer());
  const text = (start, end) => new TextDecoder().decode(view.buffer.slice(start, end));
  if (text(1, 6) !== "NUMPY" || view.byteLength < 12) throw new Error(`${file.name} is not a .npy array`);
  // Since version 2 the header's length takes four bytes instead of two.
  const end = view.getUint8(6) > 1 ? 12 + view.getUint32(8, true) : 10 + view.getUint16(8, true);
  const header = text(10, end);
  const [, byteOrder, dtype] = header.match(/'descr':\s*'([<>|=])(\w+)'/) ?? [];
  const dims = header.match(/'shape':\s*\(([\d,\s]*)\)/)?.[1].match(/\d+/g)?.map(Number);
  const read = view[`get${TYPES[dtype]}`]?.bind(view);
  if (!read || !dims) throw new Error(`${file.name} does not hold real numbers in an array`);
  const shape = dims.length === 4 && dims[0] === 1 ? dims.slice(1) : [...dims];
  if (shape.length === 2) shape.splice(channelsLast ? 2 : 0, 0, 1);
  if (shape.length !== 3 || Math.min(...shape) < 1)
    throw new Error(`${file.name} has shape (${dims.join(", ")}), expected (H, W) or (${channelsLast ? "H, W, C" : "C, H, W"})`);
  const strides = []; // in bytes
  let size = Number(dtype.slice(1));
  for (const axis of /'fortran_order':\s*True/.test(header) ? [0, 1, 2] : [2, 1, 0]) {
    strides[axis] = size;
    size *= shape[axis];
  }
  if (end + size > view.byteLength) throw new Error(`${file.name} is cut short`); // before memory is taken for it
  const [h, w, c] = channelsLast ? [0, 1, 2] : [1, 2, 0];
  const x = makeGrid(shape[h], shape[w], shape[c]);
  let k = 0;
  for (let row = 0; row < x.height; row++) for (let column = 0; column < x.width; column++)
    for (let channel = 0; channel < x.channels; channel++, k++)
      x.data[k] = Number(read(end + row * strides[h] + column * strides[w] + channel * strides[c], byteOrder !== ">"));
  return x;
}
