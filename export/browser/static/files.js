// Reads grids from arrays, tables and images, and writes .csv. Each error message is one line.
import { makeGrid } from "./grid.js";
import { IMAGE_TYPES, readImage } from "./images.js";

const RANGE_TOLERANCE = 1e-3; // as in mdlstm_tk/kinds/kind.py
export const LIMIT = 512; // positions along an axis
export const POSITIONS = LIMIT * LIMIT; // of a grid; a page is the wrong tool for larger ones

// Reads a file as a grid that has the channels of the model.
export async function readGrid(file, info) {
  const kind = file.name.toLowerCase().split(".").pop();
  const readers = { npy: readNpy, csv: readCsv, ...Object.fromEntries(IMAGE_TYPES.map((type) => [type, readImage])) };
  if (!Object.hasOwn(readers, kind)) throw new Error(`${file.name} is not a .${Object.keys(readers).join(", .")} file`);
  const x = await readers[kind](file, info);
  const isFixed = info.grid && !info.grid.includes(null) && !info.sizes; // it takes no smaller ones
  if (!isFixed && x.height * x.width > POSITIONS)
    throw new Error(`${file.name} is a ${x.height}×${x.width} grid; this page takes up to ${POSITIONS} positions`);
  if (x.channels !== info.channels)
    throw new Error(`${file.name} has ${x.channels} channels at each position, the model takes ${info.channels}`);
  const nonFinite = x.data.filter((value) => !Number.isFinite(value)).length;
  if (nonFinite) throw new Error(`${file.name} holds ${nonFinite} NaN or infinite values`);
  const tooLarge = x.data.find((value) => Math.abs(value) > (info.largest ?? Infinity));
  if (tooLarge !== undefined)
    throw new Error(`${file.name} holds ${tooLarge}, which this model, in float16, cannot hold; scale its values`);
  // As `check_scale` in mdlstm_tk/runtime/shapes.py
  const beyond = ([low, high], margin) => x.data.find((value) => value < low - margin || value > high + margin);
  const refused = info.range ? beyond(info.range, RANGE_TOLERANCE) : undefined;
  if (refused !== undefined)
    throw new Error(`${file.name} holds ${refused}, expected values in [${info.range.join(", ")}]`);
  const trained = info.trainedRange ?? (info.preprocessing && info.unitRange ? [0, 1] : null);
  const far = trained ? beyond(trained, (trained[1] - trained[0]) / 2) : undefined;
  if (far !== undefined)
    x.warning = `${far} lies far outside of [${trained.join(", ")}], the values that the model was trained on`;
  return x;
}

async function readNpy(file, info) {
  const view = new DataView(await file.arrayBuffer());
  const magic = new Uint8Array(view.buffer, 0, Math.min(6, view.byteLength));
  if (String(magic) !== "147,78,85,77,80,89" || view.byteLength < 12) throw new Error(`${file.name} is not a .npy array`);
  const isVersion2 = view.getUint8(6) > 1; // the header's length takes four bytes instead of two
  const start = isVersion2 ? 12 : 10;
  const end = start + (isVersion2 ? view.getUint32(8, true) : view.getUint16(8, true));
  const header = new TextDecoder().decode(new Uint8Array(view.buffer, start, Math.min(end, view.byteLength) - start));
  const [, byteOrder, dtype] = header.match(/'descr':\s*'([<>|=])(\w+)'/) ?? [];
  const dims = header.match(/'shape':\s*\(([\d,\s]*)\)/)?.[1].match(/\d+/g)?.map(Number);
  const typeName = { b1: "Uint8", u1: "Uint8", i1: "Int8", u2: "Uint16", i2: "Int16", u4: "Uint32", i4: "Int32",
    u8: "BigUint64", i8: "BigInt64", f2: "Float16", f4: "Float32", f8: "Float64" }[dtype];
  if (!typeName || !dims || !view[`get${typeName}`]) throw new Error(`${file.name} does not hold real numbers in an array`);
  const shape = dims.length === 4 && dims[0] === 1 ? dims.slice(1) : [...dims];
  if (shape.length === 2) shape.splice(info.channelsLast ? 2 : 0, 0, 1);
  if (shape.length !== 3 || Math.min(...shape) < 1)
    throw new Error(`${file.name} has shape (${dims.join(", ")}), expected (H, W) or (${info.channelsLast ? "H, W, C" : "C, H, W"})`);
  const itemSize = Number(dtype.slice(1));
  const count = shape.reduce((product, extent) => product * extent);
  if (end + count * itemSize > view.byteLength) throw new Error(`${file.name} is cut short`); // before it is allocated
  const result = makeGrid(...(info.channelsLast ? shape : [shape[1], shape[2], shape[0]]));
  const isFortranOrder = /'fortran_order':\s*True/.test(header);
  const placeOf = (a, b, c) => (info.channelsLast ? (a * shape[1] + b) * shape[2] + c : (b * shape[2] + c) * shape[0] + a);
  let offset = end;
  const next = () => {
    const value = Number(view[`get${typeName}`](offset, byteOrder !== ">"));
    offset += itemSize;
    return value;
  };
  const [slow, middle, fast] = isFortranOrder ? [...shape].reverse() : shape;
  for (let i = 0; i < slow; i++) for (let j = 0; j < middle; j++) for (let k = 0; k < fast; k++)
    result.data[isFortranOrder ? placeOf(k, j, i) : placeOf(i, j, k)] = next();
  return result;
}

async function readCsv(file) {
  const lines = (await file.text()).split(/\r?\n/).filter((line) => line !== "");
  const rows = lines.map((line) => line.split(",").map((text) => text.trim())); // as `mdlstm infer` reads them
  if (!rows.length) throw new Error(`${file.name} is empty`);
  rows.forEach((row, r) => {
    if (row.length !== rows[0].length)
      throw new Error(`${file.name}: row ${r + 1} has ${row.length} values, the first has ${rows[0].length}`);
    const invalid = row.find((text) => text === "" || /^[+-]?0[xob]/i.test(text) || Number.isNaN(Number(text)));
    if (invalid !== undefined) throw new Error(`${file.name}: row ${r + 1} holds “${invalid.slice(0, 20)}”, expected a number`);
  });
  return makeGrid(rows.length, rows[0].length, 1, Float32Array.from(rows.flat(), Number));
}

// Integers are written as they are. Nine significant digits identify a float32 exactly.
const written = (value) => (Number.isInteger(value) ? value : Number(value.toPrecision(9)));

// One channel of a grid as CSV text.
export function toCsv(y, channel, format = written) {
  return Array.from({ length: y.height }, (_, r) => Array.from({ length: y.width }, (_, s) =>
    format(y.data[(r * y.width + s) * y.channels + channel])).join(",") + "\n").join("");
}
