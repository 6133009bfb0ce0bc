"""Masks of segmentation. A class is a value, or a colour.

Palettes and grey masks keep their values; masks of one bit have 0 and 255. Masks in true colours are read
as 0xRRGGBB, and every colour is a class, written as 0, 1, 2, … with a palette, unless all masks are grey.
255 means "no class" if it is the largest value of images that have two classes beside it: loss and errors
leave it out. All masks of a data set are saved in one way.
"""

from __future__ import annotations

import io
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from mdlstm_tk._util.text import composed, printable
from mdlstm_tk.data.splits import NAMES as SPLIT_NAMES
from mdlstm_tk.data.task import UNLABELLED, Extents
from mdlstm_tk.errors import InputError
from mdlstm_tk.io import Array
from mdlstm_tk.io.images import Preprocessing, open_image, orientation_of, upright

log = logging.getLogger("mdlstm_tk.data")
UNKNOWN, MAX_COLOURS = 255, 256
STRAY = 0.002  # of the pixels beside 255: what covers less is no sign that 255 is not a class
RGB, GREY = np.array([1 << 16, 1 << 8, 1]), 0x010101
LOSSY = ("JPEG", "MPO", "WEBP")
NAMES = "classes.txt"  # the name of value 0, of value 1, …, one in a line


class Mask(NamedTuple):
    """A mask: pixels (*grid), or its distinct values and their counts (2, K); and how it is stored.

    Attributes:
        form: "bit", "values", "palette" or "colours" of an image, "array" of numbers.
        palette: red, green and blue of each entry in turn.
        names: of the values 0, 1, …; "" where there is none.
    """

    pixels: Array
    form: str = "values"
    palette: tuple[int, ...] = ()
    names: tuple[str, ...] = ()


def class_names(path: Path) -> tuple[str, ...]:
    """The lines of classes.txt in a folder, or of a split in the folder above."""
    for folder in (path, path.parent) if path.name.lower() in SPLIT_NAMES else (path,):
        if (file := folder / NAMES).is_file():
            try:
                return tuple(composed(line.strip()) for line in file.read_text("utf-8-sig").splitlines())
            except ValueError:
                raise InputError(f"{file} is not in UTF-8; save it so") from None
    return ()


def mask_of_array(y: Array, k: int, extents: Extents) -> Mask:
    """A mask of y (N, *grid) or (N, *grid, 1)."""
    pixels = y[k][..., 0] if y[k].ndim == len(extents) + 1 and y.shape[-1] == 1 else y[k]
    if pixels.ndim != len(extents):
        raise InputError(f"its mask has the shape {pixels.shape}, expected the grid of x; see ndim")
    return Mask(pixels[tuple(map(slice, extents))].astype(np.int64), "array")


def read_mask(file: Path, names: tuple[str, ...] = ()) -> Mask:
    """Read the mask of an image.

    Raises:
        InputError: it cannot be read, or its compression may change values.
    """
    try:
        data = file.read_bytes()
    except OSError as error:
        raise InputError(f"its mask cannot be read: {error.strerror}") from None
    with open_image(io.BytesIO(data), "its mask") as image:
        if image.format in LOSSY or "jpeg" in str(image.info.get("compression")):
            raise InputError(f"its mask is a {image.format}, which may change values; save it as PNG")
        image.load()
        mask = _mask(image)
        return mask._replace(pixels=upright(mask.pixels, orientation_of(image)), names=names)


def _mask(image: Any) -> Mask:
    pixels = np.asarray(image)
    if image.mode == "1":
        return Mask(pixels.astype(np.uint8) * 255, "bit")
    if image.mode == "P":
        return Mask(pixels, "palette", tuple(image.getpalette("RGB")))
    if image.mode == "L" or image.mode.startswith("I"):
        return Mask(pixels.astype(np.int64))
    if image.mode in ("RGB", "RGBA", "LA"):
        colours = np.asarray(image.convert("RGB")).astype(np.int64)
        return Mask(colours @ RGB, "colours")
    raise InputError(f"its mask has the mode {image.mode} of Pillow, expected grey, a palette or RGB")


class MaskClasses(NamedTuple):
    """The classes of all masks.

    Attributes:
        values: of each class in masks that are written, which hold no colours but a palette.
        palette: red, green and blue of each class in turn; empty if masks are grey.
        names: of the classes.
        unknown: further values, which mean that the class is not known.
        prepare: how images, and with them masks, are resized; None of arrays.
    """

    values: tuple[int, ...]
    palette: tuple[int, ...]
    names: tuple[str, ...]
    unknown: tuple[int, ...] = ()
    prepare: Preprocessing | None = None

    @classmethod
    def of(cls, masks: Sequence[Mask]) -> MaskClasses:
        """The classes of masks that hold their distinct values and counts.

        Raises:
            InputError: they are stored in several ways, or have fewer than two classes.
        """
        coloured = [mask.pixels[0] for mask in masks if mask.form == "colours"]
        if all((each % 256 * GREY == each).all() for each in coloured):
            ends = [[256], [np.iinfo(np.int64).max]]  # of a value and of a count
            masks = [
                m._replace(pixels=m.pixels % ends, form="values") if m.form == "colours" else m
                for m in masks
            ]
        forms, lines = {mask.form for mask in masks}, dict(enumerate(masks[0].names))
        if len(forms) > 1 or len({mask.palette for mask in masks}) > 1:
            raise InputError(
                f"masks are stored in several ways ({', '.join(sorted(forms))}) or with several palettes, "
                "so that equal values may not mean equal classes; save all in one way"
            )
        found, counts = np.concatenate([mask.pixels for mask in masks], axis=1)
        every = values = np.unique(found[found >= 0]).tolist()
        if len(values) > 2 and values[-1] == UNKNOWN and not forms & {"array", "colours"}:
            *values, _ = values
            least = STRAY * counts[found != UNKNOWN].sum()
            sure = [v for v in values if lines.get(v) or counts[found == v].sum() > least]
            if len(sure) < 2:
                stray = ", ".join(str(value) for value in values if value not in sure)
                text = f"255 is a class, and %s, in few pixels, are none; if they are, name them in {NAMES}"
                log.warning(text, stray)
                values = [*sure, UNKNOWN]
            else:
                share = 100 * counts[found == UNKNOWN].sum() / counts.sum()
                log.info("255 means that the class is not known, at %.0f %% of the positions", share)
        has_colours = forms == {"colours"}
        if len(values) < 2 or (has_colours and len(values) > MAX_COLOURS):
            raise InputError(
                f"masks hold {len(values)} classes, expected 2 or more, of colours at most 256"
            )
        if has_colours:
            palette = [value >> shift & 255 for value in values for shift in (16, 8, 0)]
            names = [f"#{value:06x}" for value in values]
            return cls(tuple(range(len(values))), tuple(palette), tuple(names))
        entries = masks[0].palette
        palette = [part for value in values for part in entries[3 * value : 3 * value + 3]]
        names = [lines.get(value) or str(value) for value in values]
        if len({*names}) < len(names):
            raise InputError(f"{NAMES} names several values {printable(max(names, key=names.count))}")
        unknown = tuple(value for value in every if value not in values)
        return cls(tuple(values), tuple(palette), tuple(names), unknown)

    def encode(self, mask: Mask) -> Array:
        """The class at each position of a mask, resized like its image; UNLABELLED where it is unknown.

        Raises:
            InputError: its palette has other colours for the classes, or it has values of other classes.
        """
        keys, pixels = np.array(self.values), mask.pixels
        for k, value in enumerate(self.values if self.palette and mask.palette else ()):
            if mask.palette[3 * value : 3 * value + 3] not in ((), self.palette[3 * k : 3 * k + 3]):
                raise InputError(f"its palette has another colour for {self.names[k]}")
        if mask.form == "colours":
            keys = np.reshape(self.palette or np.repeat(keys, 3), (-1, 3)) @ RGB
        if self.prepare is not None:
            pixels = resize_nearest(pixels, self.prepare.resized((pixels.shape[0], pixels.shape[1])))
        order = np.argsort(keys)
        indices = order[np.searchsorted(keys, pixels, sorter=order).clip(max=len(keys) - 1)]
        is_class = keys[indices] == pixels
        unknown = np.array(self.unknown) * (GREY if mask.form == "colours" else 1)
        others = ~is_class & (pixels >= 0) & ~np.isin(pixels, unknown)
        if others.mean() > STRAY:
            value = int(pixels[others][0])
            shown = f"#{value:06x}" if mask.form == "colours" else value
            raise InputError(f"its mask has {shown}, which is none of the classes of the run")
        dtype = np.int16 if len(keys) <= np.iinfo(np.int16).max else np.int32
        return np.where(is_class, indices, UNLABELLED).astype(dtype)


def resize_nearest(pixels: Array, extents: tuple[int, int]) -> Array:
    """Pixels (H, W) at new extents; each position takes the value at its centre."""
    rows, columns = (
        (2 * np.arange(new) + 1) * old // (2 * new) for old, new in zip(pixels.shape, extents, strict=True)
    )
    return pixels[np.ix_(rows, columns)]
