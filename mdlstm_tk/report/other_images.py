"""Images of another data set than that of a task, which a density model should find less likely."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from mdlstm_tk.data import Task
from mdlstm_tk.data.builtin.fashion import FOLDER
from mdlstm_tk.data.data_folder import DataFolder
from mdlstm_tk.data.idx import find_idx, read_idx
from mdlstm_tk.data.sampling import binarise
from mdlstm_tk.errors import InputError, MissingExtraError, require
from mdlstm_tk.runtime.preprocessing import resize, to_grey

PIECE = 32  # pixels of a side of the pieces of photographs
MIN_CONTRAST = 0.1  # of a piece whose darkest and brightest pixels become 0 and 1

Images = npt.NDArray[np.float32]


def other_images(task: Task, count: int) -> tuple[str, Images] | None:
    """What another data set shows, and its images in size, channels and levels of the task.

    For digits these are clothes if Fashion-MNIST is installed, and else pieces of photographs. For all
    other tasks they are digits.

    Args:
        task: a task of kind "density".
        count: number of images, at most.

    Returns:
        The name, and (N, H, W, C) in [0, 1]; None if scikit-learn is not installed.
    """
    is_digits = task.name.startswith("digits")
    for name, read in OF_DIGITS.items() if is_digits else OF_OTHERS.items():
        try:
            grey = read(count)
        except (InputError, MissingExtraError):
            continue
        height, width = task.spec.size
        images = np.stack([resize(image[..., None], (height, width)) for image in grey])
        if task.spec.outputs == 1:
            images = binarise(images[..., 0])[..., None].astype(np.float32)
        return name, np.repeat(images, task.spec.channels, axis=-1)
    return None


def _digits(count: int) -> Images:
    data: Any = require("sklearn.datasets", "data").load_digits()
    return np.asarray(data.images[:count] / 16, np.float32)


def _clothes(count: int) -> Images:
    files = find_idx(DataFolder(FOLDER))
    if "test" not in files:
        raise InputError(f"Fashion-MNIST is not at {FOLDER}")
    return np.asarray(read_idx(files["test"])[:count] / np.float32(255), np.float32)


def _photographs(count: int) -> Images:
    """Square pieces of the photographs that come with scikit-learn."""
    pieces: list[Images] = []
    for image in require("sklearn.datasets", "data").load_sample_images().images:
        grey = to_grey(np.asarray(image)) / np.float32(255)
        rows, columns = (extent // PIECE for extent in grey.shape)
        inside = grey[: rows * PIECE, : columns * PIECE].reshape(rows, PIECE, columns, PIECE)
        of_image = inside.swapaxes(1, 2).reshape(-1, PIECE, PIECE)
        low, high = of_image.min((1, 2), keepdims=True), of_image.max((1, 2), keepdims=True)
        pieces += list((of_image - low) / np.maximum(high - low, MIN_CONTRAST))  # else much is white sky
    return np.stack(pieces[:: max(len(pieces) // count, 1)][:count])


OF_DIGITS: Mapping[str, Callable[[int], Images]] = {
    "clothes": _clothes,
    "pieces of photographs": _photographs,
}
OF_OTHERS: Mapping[str, Callable[[int], Images]] = {"handwritten digits": _digits}
