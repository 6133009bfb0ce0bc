// Grids from .npy, .csv and .png files, and back to .csv. Every error says what is wrong in one line.
import { grid } from "./model.js";

export const LIMIT = 512; // cells along an axis: beyond it a page is the wrong tool

export async function read(file, about) {
  const kind = file.name.toLowerCase().split(".").pop();
  const readers = { npy: readNpy, csv: readCsv, png: readPng };
  if (!(kind in readers)) throw new Error(`${file.name} is not a .npy, .csv or .png file`);
  const x = await readers[kind](file, about);
  if (Math.max(x.height, x.width) > LIMIT)
    throw new Error(`${file.name} is a ${x.height}×${x.width} grid; this page takes up to ${LIMIT}×${LIMIT}`);
  if (x.channels !== about.channels)
    throw new Error(`${file.name} has ${x.channels} channels at each position, the model takes ${about.channels}`);
  const bad = x.data.filter((value) => !Number.isFinite(value)).length;
  if (bad) throw new Error(`${file.name} holds ${bad} NaN or infinite values`);
  return x;
}

async function readNpy(file) {
  const view = new DataView(await file.arrayBuffer());
  const magic = new Uint8Array(view.buffer, 0, Math.min(6, view.byteLength));
  if (String(magic) !== "147,78,85,77,80,89" || view.byteLength < 12) throw new Error(`${file.name} is not a .npy array`);
  const long = view.getUint8(6) > 1;
  const start = long ? 12 : 10;
  const end = start + (long ? view.getUint32(8, true) : view.getUint16(8, true));
  const header = new TextDecoder().decode(new Uint8Array(view.buffer, start, Math.min(end, view.byteLength) - start));
  const [, order, kind] = header.match(/'descr':\s*'([<>|=])(\w+)'/) ?? [];
  const dims = header.match(/'shape':\s*\(([\d,\s]*)\)/)?.[1].match(/\d+/g)?.map(Number);
  const get = { b1: "Uint8", u1: "Uint8", i1: "Int8", u2: "Uint16", i2: "Int16", u4: "Uint32", i4: "Int32",
    u8: "BigUint64", i8: "BigInt64", f2: "Float16", f4: "Float32", f8: "Float64" }[kind];
  if (!get || !dims || !view[`get${get}`]) throw new Error(`${file.name} does not hold real numbers in an array`);
  const shape = dims.length === 4 && dims[0] === 1 ? dims.slice(1) : [...dims];
  if (shape.length === 2) shape.push(1);
  if (shape.length !== 3 || Math.min(...shape) < 1)
    throw new Error(`${file.name} has shape (${dims.join(", ")}), expected (H, W) or (H, W, C)`);
  const size = Number(kind.slice(1));
  const result = grid(...shape);
  if (end + result.data.length * size > view.byteLength) throw new Error(`${file.name} is cut short`);
  const fortran = /'fortran_order':\s*True/.test(header);
  const [height, width, channels] = shape;
  let place = end;
  const next = () => {
    const value = Number(view[`get${get}`](place, order !== ">"));
    place += size;
    return value;
  };
  if (!fortran) result.data.forEach((_, k, data) => { data[k] = next(); });
  else for (let c = 0; c < channels; c++) for (let s = 0; s < width; s++) for (let r = 0; r < height; r++)
    result.data[(r * width + s) * channels + c] = next();
  return result;
}

async function readCsv(file) {
  const lines = (await file.text()).split(/\r?\n/).filter((line) => line.trim());
  const rows = lines.map((line) => line.trim().split(/\s*[,;\t]\s*|\s+/));
  if (!rows.length) throw new Error(`${file.name} is empty`);
  rows.forEach((row, r) => {
    if (row.length !== rows[0].length)
      throw new Error(`${file.name}: row ${r + 1} has ${row.length} values, the first has ${rows[0].length}`);
    const bad = row.find((text) => text === "" || Number.isNaN(Number(text)));
    if (bad !== undefined) throw new Error(`${file.name}: row ${r + 1} holds “${bad.slice(0, 20)}”, expected a number`);
  });
  return grid(rows.length, rows[0].length, 1, Float32Array.from(rows.flat(), Number));
}

// Pixels from 0 to 1, grey for a model of one channel; shrunk to the model's grid, or to 64×64.
async function readPng(file, about) {
  const picture = await createImageBitmap(file).catch(() => {
    throw new Error(`${file.name} is not a picture that this browser reads`);
  });
  const [tall, wide] = about.grid ?? [64, 64];
  const shrink = Math.min(1, tall / picture.height, wide / picture.width);
  const [height, width] = about.grid && !about.sizes ? about.grid
    : [picture.height, picture.width].map((extent) => Math.max(1, Math.round(extent * shrink)));
  const context = Object.assign(document.createElement("canvas"), { height, width }).getContext("2d");
  context.imageSmoothingQuality = "high";
  context.drawImage(picture, 0, 0, width, height);
  const pixels = context.getImageData(0, 0, width, height).data;
  const colours = about.channels === 3;
  const result = grid(height, width, colours ? 3 : 1);
  for (let k = 0; k < height * width; k++) {
    const [red, green, blue] = pixels.subarray(4 * k, 4 * k + 3);
    if (colours) result.data.set([red / 255, green / 255, blue / 255], 3 * k);
    else result.data[k] = (0.299 * red + 0.587 * green + 0.114 * blue) / 255;
  }
  return result;
}

// One channel of a grid as text, a line a row; nine digits give a float32 back exactly.
export function toCsv(y, channel) {
  const at = (r, s) => Number(y.data[(r * y.width + s) * y.channels + channel].toPrecision(9));
  return Array.from({ length: y.height }, (_, r) =>
    Array.from({ length: y.width }, (_, s) => at(r, s)).join(",") + "\n").join("");
}
