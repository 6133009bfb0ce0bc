"""Files as models take them: arrays by name, samples of a data set, and images."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from mdlstm_tk.errors import InputError
from mdlstm_tk.io import Array
from mdlstm_tk.io.files import read_file
from mdlstm_tk.io.metadata import Metadata
from mdlstm_tk.kinds import kind_named
from mdlstm_tk.kinds.kind import Kind

if TYPE_CHECKING:
    from mdlstm_tk.io.images import Preprocessing

DATA_SET = {"x", "y", "names", "sizes", "ndim"}  # arrays of an `.npz` to train on
PAGE_HEIGHT = 500  # pixels; no image of a line is higher, and less than twice as wide

Resize = tuple[int | None, int | None] | None


class Feed(NamedTuple):
    """The arguments of a call of `Session`, by name, and the width in pixels of the image that x was made
    of."""

    arguments: dict[str, Array]
    width: int | None = None


def load_image(path: str | Path, metadata: Metadata) -> Array:
    """Read an image file as a model takes it: (H, W) for one channel, else (H, W, 3) or (3, H, W)."""
    file = read_file(path)
    if not file.is_image:
        raise InputError(f"{path} is no image")
    return image_for(file.arrays[None], metadata, str(path))


def read_feeds(source: str, metadata: Metadata, resize: Resize = None) -> dict[str | None, Feed]:
    """The inputs of a model in a file, or on standard input.

    There is one for each sample or batch, by the name of its array. An `.npz` that names the inputs of the
    model is one batch; one to train on gives its x, sample by sample if it has sizes; each array of another
    one is an x.
    """
    file = read_file(source)
    names, inputs = {name for name in file.arrays if name is not None}, {*metadata.inputs}
    if file.is_image:
        pixels = file.arrays[None]
        height, width = pixels.shape[:2]
        if kind_named(metadata.kind).reads_lines and height > max(PAGE_HEIGHT, width / 2):
            raise InputError(f"{source} is a page; the model reads lines; use: mdlstm read --line-model")
        return {None: Feed({"x": image_for(pixels, metadata, source, resize)}, width)}
    if "x" in names and (names <= DATA_SET or inputs - {"sizes"} <= names <= inputs | DATA_SET):
        return _of_data_set({str(name): x for name, x in file.arrays.items()}, metadata)
    if inputs - {"x", "sizes"}:
        raise InputError(f"give an .npz with the inputs of the model: {', '.join(metadata.inputs)}")
    return {name: Feed({"x": x}) for name, x in file.arrays.items()}


def _of_data_set(arrays: dict[str, Array], metadata: Metadata) -> dict[str | None, Feed]:
    feeds = {name: arrays[name] for name in metadata.inputs if name in arrays}
    x, sizes, axis = arrays["x"], arrays.get("sizes"), -1 if metadata.channels_last else 1
    if "ndim" in arrays and arrays["ndim"].tolist() != metadata.ndim:
        raise InputError(f"ndim is {arrays['ndim']!s:.40}, but the model takes {metadata.layout}")
    if x.ndim == metadata.ndim + 1 and metadata.channel_axis:
        is_sample = metadata.channels == x.shape[axis if axis < 0 else 0]  # which an x alone may be
        if arrays.keys() & {"y", "sizes"} or (metadata.channels == 1 and not is_sample):
            x = feeds["x"] = np.expand_dims(x, axis)
    # Answers are those of valid positions, so each sample of a data set runs in its own extents.
    is_plain = type(kind_named(metadata.kind)).decode is Kind.decode and "y" not in arrays
    if sizes is None or len(metadata.inputs) > 2 or (metadata.takes_sizes and is_plain):
        return {"x" if len(feeds) == 1 else None: Feed(feeds)}
    fits = x.ndim == metadata.ndim + 2 and sizes.shape == (len(x), metadata.ndim)
    fits = fits and sizes.dtype.kind in "iu"
    if not fits or not ((sizes >= 1) & (sizes <= metadata.grid_of(x.shape))).all():
        raise InputError(f"sizes, {sizes.dtype} of shape {sizes.shape}, do not fit x of shape {x.shape}")
    samples = enumerate(zip(x, sizes.tolist(), strict=True))
    return {f"x[{k}]": Feed({"x": sample[metadata.region(extents)]}) for k, (sample, extents) in samples}


def preprocessing_for(metadata: Metadata, label: str, resize: Resize = None) -> Preprocessing:
    """The preparation of images for a model; `label` names one in errors."""
    if metadata.ndim != 2 or metadata.channels not in (1, 3):
        layout = f"{metadata.layout} with C = {metadata.channels}"
        raise InputError(f"{label} is an image, but the model takes {layout}")
    from mdlstm_tk.io.images import Preprocessing

    stored: Any = metadata.preprocessing or {"channels": metadata.channels}
    return Preprocessing.from_json({**stored, **({"resize": resize} if resize else {})})


def image_for(pixels: Array, metadata: Metadata, label: str, resize: Resize = None) -> Array:
    """Decoded pixels as the model takes them: (H, W) for one channel, else (H, W, 3) or (3, H, W)."""
    preprocessing = preprocessing_for(metadata, label, resize)
    if pixels.dtype.kind != "f" and not metadata.unit_range:
        text = "is an image in [0, 1], but the model was trained on other numbers; give a .npy file"
        raise InputError(f"{label} {text}")
    x = preprocessing(pixels)
    if metadata.channels == 1:
        return x[..., 0]
    return x if metadata.channels_last else np.moveaxis(x, -1, 0)
