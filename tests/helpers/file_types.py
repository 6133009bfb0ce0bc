"""Files of every type that networks are trained on. All samples differ in their extents."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import cycle, islice, product
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from mdlstm_tk.kinds import kind_named

Picture = Any  # a Pillow image

CLASSES = ("dark", "bright")
MASK_VALUES = (0, 7, 9)
ALPHABET = "abc"
TARGET_FOLDERS = {"segment": "masks", "grid": "targets"}
EXTENTS = list(product(range(9, 16), range(16, 32)))  # (H, W)
ORIENTATION = 0x0112  # a tag of EXIF


class FileType(NamedTuple):
    """A suffix, a function that makes the image to save from a picture in colours, options of `save`."""

    suffix: str
    convert: Callable[[Picture], Picture]
    options: Mapping[str, Any] = MappingProxyType({})


def mode(name: str) -> Callable[[Picture], Picture]:
    """Convert a picture to a mode of Pillow."""
    return lambda picture: picture.convert(name)


def transparent(name: str) -> Callable[[Picture], Picture]:
    """Add an opacity that rises from left to right."""

    def convert(picture: Picture) -> Picture:
        image = picture.convert(name)
        ramp = np.linspace(0, 255, picture.width).astype(np.uint8)
        image.putalpha(Image.fromarray(np.tile(ramp, (picture.height, 1))))
        return image

    return convert


def without_colour(picture: Picture) -> Picture:
    """Make the colour of the first pixel transparent wherever it occurs."""
    image = picture.convert("P", palette=Image.Palette.ADAPTIVE, colors=8)
    image.info["transparency"] = image.getpixel((0, 0))
    return image


def numbers(dtype: type, largest: float) -> Callable[[Picture], Picture]:
    """Make a grey image of another dtype, with values from 0 to `largest`."""

    def convert(picture: Picture) -> Picture:
        values = np.asarray(picture.convert("L")) / 255 * largest
        return Image.fromarray((values if dtype is np.float32 else np.rint(values)).astype(dtype))

    return convert


def turned(method: Image.Transpose) -> Callable[[Picture], Picture]:
    """Turn a picture as a camera does that stores the orientation beside it."""
    return lambda picture: picture.transpose(method)


def oriented(tag: int) -> dict[str, Any]:
    """Options of `save` that store an orientation."""
    exif = Image.Exif()
    exif[ORIENTATION] = tag
    return {"exif": exif}


IMAGE_TYPES: dict[str, FileType] = {
    "PNG 1": FileType(".png", mode("1")),
    "PNG L": FileType(".png", mode("L")),
    "PNG LA": FileType(".png", transparent("L")),
    "PNG P": FileType(".png", mode("P")),
    "PNG P, one colour transparent": FileType(".png", without_colour),
    "PNG RGB": FileType(".png", mode("RGB")),
    "PNG RGBA": FileType(".png", transparent("RGB")),
    "PNG I;16": FileType(".png", numbers(np.uint16, 65535)),
    "PNG RGB, mirrored by EXIF": FileType(".png", turned(Image.Transpose.FLIP_LEFT_RIGHT), oriented(2)),
    "JPEG L": FileType(".jpg", mode("L")),
    "JPEG RGB": FileType(".jpeg", mode("RGB")),
    "JPEG RGB, progressive": FileType(".jpg", mode("RGB"), {"progressive": True}),
    "JPEG RGB, turned by EXIF": FileType(".JPG", turned(Image.Transpose.ROTATE_90), oriented(6)),
    "JPEG CMYK": FileType(".jpg", mode("CMYK")),
    "TIFF L": FileType(".tif", mode("L")),
    "TIFF RGB": FileType(".tiff", mode("RGB"), {"compression": "tiff_lzw"}),
    "TIFF RGBA": FileType(".tif", transparent("RGB")),
    "TIFF CMYK": FileType(".tif", mode("CMYK")),
    "TIFF 16 bit": FileType(".tif", numbers(np.uint16, 65535)),
    "TIFF 32 bit": FileType(".tif", numbers(np.int32, 3)),
    "TIFF float": FileType(".tif", numbers(np.float32, 1)),
    "TIFF RGB, turned by EXIF": FileType(".tif", turned(Image.Transpose.ROTATE_270), oriented(8)),
    "BMP 1": FileType(".bmp", mode("1")),
    "BMP L": FileType(".bmp", mode("L")),
    "BMP P": FileType(".bmp", mode("P")),
    "BMP RGB": FileType(".bmp", mode("RGB")),
    "GIF L": FileType(".gif", mode("L")),
    "GIF P": FileType(".gif", mode("P")),
    "GIF P, one colour transparent": FileType(".gif", without_colour),
    "GIF of two frames": FileType(
        ".gif", mode("P"), {"save_all": True, "append_images": [Image.new("P", (99, 99))]}
    ),
    "WebP RGB": FileType(".webp", mode("RGB")),
    "WebP RGBA": FileType(".webp", transparent("RGB"), {"lossless": True}),
    "PGM": FileType(".pgm", mode("L")),
    "PPM": FileType(".ppm", mode("RGB")),
}
ARRAY_TYPES = {"npy (H, W)": (), "npy (H, W, 1)": (1,)}


@dataclass
class Data:
    """A data set for one kind of task.

    Attributes:
        path: the value of `--data`.
        files: type and path of each file to pass to `infer`; and for each array in its result, by name, the
            name of the sample in training. The only array of a result is called "y".
    """

    path: Path
    files: list[tuple[str, Path, dict[str, str]]] = field(default_factory=list)


def write_data(kind: str, folder: Path, file_types: Sequence[str], samples: int) -> Data:
    """Write files of several types as training expects them.

    Args:
        kind: kind of the task.
        folder: where to write.
        file_types: keys of `IMAGE_TYPES`, or of `ARRAY_TYPES` to write an `.npz` file to train on.
        samples: number of files of each type.
    """
    rng = np.random.default_rng(0)
    names = list(islice(cycle(file_types), samples * len(file_types)))
    if set(names) <= set(ARRAY_TYPES):
        return _write_arrays(kind, folder, names, rng)
    data, texts, rows = Data(folder), [], list[str]()
    for number, (name, extents) in enumerate(zip(names, EXTENTS, strict=False)):
        file_type = IMAGE_TYPES[name]
        class_index = number // len(file_types) % 2
        text = "".join(rng.choice(list(ALPHABET), 1 + number % 2))
        mask = rng.integers(0, len(MASK_VALUES), extents)
        pixels = rng.integers(0, 90, (*extents, 3))
        if kind == "classify":
            pixels += 120 * class_index
        elif kind == "transcribe":
            for letter, columns in zip(text, np.array_split(np.arange(extents[1]), len(text)), strict=True):
                pixels[:, columns[1:]] += 80 * ALPHABET.index(letter)
        else:
            pixels += 80 * mask[..., None]
        parent = {"classify": CLASSES[class_index], "transcribe": ""}.get(kind, "images")
        path = folder / parent / f"{number:03}{file_type.suffix}"
        path.parent.mkdir(parents=True, exist_ok=True)
        file_type.convert(Image.fromarray(pixels.astype(np.uint8))).save(path, **file_type.options)
        data.files.append((name, path, {"y": str(path.relative_to(folder))}))
        texts.append(f"{path.name}\t{text}\n")
        target = {"regress": f"{mask.mean():.4f}", "tag": CLASSES[class_index]}.get(kind, "")
        rows.append(f"images/{path.name},{target}\n")
        if kind in TARGET_FOLDERS:
            target = folder / TARGET_FOLDERS[kind] / f"{number:03}.png"
            target.parent.mkdir(exist_ok=True)
            values = np.asarray(MASK_VALUES)[mask] if kind == "segment" else 80 * mask
            Image.fromarray(values.astype(np.uint8)).save(target)
    if kind == "transcribe":
        (folder / "labels.tsv").write_text("".join(texts), encoding="utf-8")
    elif table := kind_named(kind).table:
        (folder / table).write_text(f"file,labels\n{''.join(rows)}", encoding="utf-8")
    return data


def _write_arrays(kind: str, folder: Path, names: Sequence[str], rng: np.random.Generator) -> Data:
    """Write an `.npz` file, for kind "grid" or "classify", and each of its samples as a `.npy` file."""
    folder.mkdir(parents=True)
    data = Data(folder / "train.npz")
    sizes = np.array(EXTENTS[: len(names)])
    x = rng.normal(size=(len(names), *sizes.max(axis=0))).astype(np.float32)
    y = 3 - x if kind == "grid" else np.arange(len(x)) % 2
    np.savez(data.path, x=x, y=y, sizes=sizes)
    for number, (name, (height, width)) in enumerate(zip(names, sizes.tolist(), strict=True)):
        path = folder / "samples" / f"{number:03}.npy"
        path.parent.mkdir(exist_ok=True)
        np.save(path, x[number, :height, :width].reshape(height, width, *ARRAY_TYPES[name]))
        data.files.append((name, path, {"y": f"sample {number}"}))
    data.files.append(("npz", data.path, {f"x[{k}]": f"sample {k}" for k in range(len(x))}))
    return data
