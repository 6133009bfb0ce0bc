"""Pictures of a density model: drawn images, their neighbours, and log-probabilities."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from markupsafe import Markup
from torch import nn

from mdlstm_tk.data import Split, Task
from mdlstm_tk.data.builtin.digits import load_digits
from mdlstm_tk.data.task import DatasetTask, read_batch
from mdlstm_tk.density.contact_sheet import IMAGE_PIXELS, contact_sheet
from mdlstm_tk.density.digits import binarise
from mdlstm_tk.density.sampling import draw_images
from mdlstm_tk.errors import MissingExtraError, require
from mdlstm_tk.io.images import resize, to_grey
from mdlstm_tk.report.evaluation import Example, split_to_show
from mdlstm_tk.report.panels import Panel, draw_input, visible
from mdlstm_tk.report.plots import svg_histogram
from mdlstm_tk.training import TrainConfig

DRAWN_IMAGES = 36  # images beside as many of the data
PICTURED = 12  # drawn images in `prediction.png`
PAIRS = 12  # drawn images beside their nearest neighbours
TRAINING_IMAGES = 10_000  # that neighbours are searched among, at most
HISTOGRAM_IMAGES = 256  # images of each kind in the histogram, at most
BATCH = 64
PIECE = 32  # pixels of a side of the pieces of photographs
MIN_CONTRAST = 0.1  # of a piece whose darkest and brightest pixels become 0 and 1

Images = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Drawings:
    """Pictures of a density model.

    Attributes:
        split: the split that `data` are of.
        data: images of the data.
        drawn: images that the network has drawn.
        neighbours: drawn images, each with the training image nearest to it on its right; None if there
            are no training images.
        searched: number of training images that were searched.
        count: number of images of the data in the histogram.
        histogram: log-probabilities of data, and of images unlike them.
        means: mean log-probability in nats of each kind of image.
    """

    split: Split
    data: Panel
    drawn: Panel
    neighbours: Panel | None
    searched: int
    count: int
    histogram: Markup
    means: dict[str, float]


def make_drawings(network: nn.Module, task: Task, config: TrainConfig) -> Drawings | None:
    """Draw images and measure others; None if the network cannot draw, or the images differ in size."""
    if task.has_mixed_sizes or not hasattr(network, "sample"):
        return None
    label, shown, split = split_to_show(task)
    spec, seed = task.spec, config.seed
    height, width = spec.size
    data = np.concatenate(list(_images(shown, split, seed, HISTOGRAM_IMAGES)))
    drawn = draw_images(network, DRAWN_IMAGES, (height, width), spec.channels, seed)
    nearest, searched = nearest_images(drawn[:PAIRS], _images(task, "train", seed, TRAINING_IMAGES))
    kinds = {f"{label} data": data, **images_unlike(task, data)}
    log_probs = {name: _log_probabilities(network, images) for name, images in kinds.items()}
    return Drawings(
        label,
        Panel("data", contact_sheet(data[:DRAWN_IMAGES])),
        Panel("drawn", contact_sheet(drawn)),
        _pairs(drawn[:PAIRS], nearest) if searched else None,
        searched,
        len(data),
        svg_histogram(log_probs, "log-probability of an image, nats"),
        {name: float(values.mean()) for name, values in log_probs.items()},
    )


def picture(
    examples: Sequence[Example], network: nn.Module, config: TrainConfig, split: Split
) -> list[Panel]:
    """Panels of samples, and of images that the network has drawn; see `TrainingKind.picture`."""
    panels = [
        Panel(f"{split} data", draw_input(visible(example.batch.x, example.batch)), sample=example.name)
        for example in examples
    ]
    if examples and hasattr(network, "sample"):  # a network of the user's own need not draw
        spec = examples[0].spec
        height, width = spec.size
        drawn = draw_images(network, PICTURED, (height, width), spec.channels, config.seed)
        panels += [Panel("drawn", draw_input(image)) for image in drawn]
    return panels


def images_unlike(task: Task, data: Images) -> dict[str, Images]:
    """Return images by name that should be less likely than the data, in their size, channels and levels.

    They are the data turned, noise, and, if scikit-learn is installed, another data set: digits, or for
    digits pieces of photographs.
    """
    count, height, width, channels = data.shape
    rng = np.random.default_rng(0)
    pixels = data.reshape(count, -1, channels)
    turns = 1 if height == width else 2
    kinds = {
        f"turned by {90 * turns}°": np.rot90(data, turns, axes=(1, 2)),
        "noise (pixels shuffled)": np.stack([rng.permutation(each) for each in pixels]).reshape(data.shape),
    }
    is_digits = task.name.startswith("digits")
    try:
        grey = _photographs(count) if is_digits else _digits(count)
    except MissingExtraError:
        return kinds
    images = np.stack([resize(image[..., None], (height, width)) for image in grey])
    if task.spec.outputs == 1:
        images = binarise(images[..., 0])[..., None].astype(np.float32)
    name = "pieces of photographs" if is_digits else "handwritten digits"
    return {**kinds, name: np.repeat(images, channels, axis=-1)}


def _digits(count: int) -> Images:
    return np.asarray(load_digits()[0][:count])


def _photographs(count: int) -> Images:
    """Return square pieces of the photographs that come with scikit-learn."""
    pieces: list[Images] = []
    for image in require("sklearn.datasets", "data").load_sample_images().images:
        grey = to_grey(np.asarray(image)) / np.float32(255)
        rows, columns = (extent // PIECE for extent in grey.shape)
        inside = grey[: rows * PIECE, : columns * PIECE].reshape(rows, PIECE, columns, PIECE)
        squares = inside.swapaxes(1, 2).reshape(-1, PIECE, PIECE)
        low, high = squares.min((1, 2), keepdims=True), squares.max((1, 2), keepdims=True)
        pieces += list((squares - low) / np.maximum(high - low, MIN_CONTRAST))  # else much is white sky
    return np.stack(pieces[:: max(len(pieces) // count, 1)][:count])


def nearest_images(images: Images, batches: Iterable[Images]) -> tuple[Images, int]:
    """Return for each image the one of the batches with the smallest sum of squared differences, and the
    number of images in the batches."""
    nearest, smallest, count = np.zeros_like(images), np.full(len(images), np.inf), 0
    for batch in batches:
        count += len(batch)
        for k, image in enumerate(images):
            distances = np.square(batch - image).sum((1, 2, 3))
            if distances.min() < smallest[k]:
                smallest[k], nearest[k] = distances.min(), batch[distances.argmin()]
    return nearest, count


def _images(task: Task, split: Split, seed: int, limit: int) -> Iterator[Images]:
    """Iterate over the first images of a split, in batches; a task that generates them has any number."""
    count = min(task.count(split) or (0 if isinstance(task, DatasetTask) else limit), limit)
    for step in range(-(-count // BATCH)):
        yield read_batch(task, seed, step, BATCH, split, slice(0, count - step * BATCH)).x


@torch.no_grad()
def _log_probabilities(network: nn.Module, images: Images) -> npt.NDArray[Any]:
    """Return (N,) in nats."""
    parts = [
        network(torch.from_numpy(np.ascontiguousarray(images[k : k + BATCH]))).double().sum((1, 2, 3))
        for k in range(0, len(images), BATCH)
    ]
    return torch.cat(parts).numpy()


def _pairs(left: Images, right: Images) -> Panel:
    """Draw images beside others, as large as on the other sheets. Grey lines keep the pairs apart."""
    line = np.full((*left.shape[:2], 1, left.shape[3]), 0.5, np.float32)
    pairs = np.concatenate([left, line, right, line, line], axis=2)
    side = IMAGE_PIXELS * max(pairs.shape[1:3]) // max(left.shape[1:3])
    return Panel("neighbours", contact_sheet(pairs, side=side))
