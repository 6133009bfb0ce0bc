"""The part of a page on a density model: drawn images, their neighbours, and what is likely."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from markupsafe import Markup
from torch import nn

from mdlstm_tk.data import Split, Task
from mdlstm_tk.report.contact_sheet import IMAGE_PIXELS, contact_sheet
from mdlstm_tk.report.other_images import other_images
from mdlstm_tk.training import TrainConfig, draw_images
from mdlstm_tk.viz.examples import display_split
from mdlstm_tk.viz.panels import Panel
from mdlstm_tk.viz.svg import EmbeddedImage, embed_panel, svg_histogram

DRAWN = 36  # images beside as many of the data
PAIRS = 12  # drawn images beside their nearest neighbours
TRAINING_IMAGES = 10_000  # that neighbours are searched among, at most
MEASURED = 256  # images of each kind in the histogram, at most
BATCH = 64

Images = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Drawings:
    """Pictures of a density model.

    Attributes:
        split: the split that `data` are of.
        data: images of the data.
        drawn: images that the network has drawn.
        neighbours: drawn images, each with the training image nearest to it on its right.
        searched: number of training images that were searched.
        histogram: log-probabilities of data, and of images unlike them.
        means: mean log-probability in nats of each kind of image.
    """

    split: Split
    data: EmbeddedImage
    drawn: EmbeddedImage
    neighbours: EmbeddedImage
    searched: int
    histogram: Markup
    means: dict[str, float]


def make_drawings(network: nn.Module, task: Task, config: TrainConfig) -> Drawings | None:
    """Draw images and measure others; None if the network cannot draw, or the images differ in size."""
    if task.has_mixed_sizes or not hasattr(network, "sample"):
        return None
    split = display_split(task)
    spec, seed = task.spec, config.seed
    height, width = spec.size
    data = _images(task, split, seed, MEASURED)
    training = _images(task, "train", seed, TRAINING_IMAGES)
    drawn = draw_images(network, DRAWN, (height, width), spec.channels, seed)
    distances = [np.square(training - image).sum((1, 2, 3)) for image in drawn[:PAIRS]]
    nearest = training[[int(distance.argmin()) for distance in distances]]
    likely = {
        name: _log_probabilities(network, images)
        for name, images in _kinds_of_images(task, data, split).items()
    }
    return Drawings(
        split,
        _sheet("data", data[:DRAWN]),
        _sheet("drawn", drawn),
        _pairs(drawn[:PAIRS], nearest),
        len(training),
        svg_histogram(likely, "log-probability of an image, nats"),
        {name: float(values.mean()) for name, values in likely.items()},
    )


def _images(task: Task, split: Split, seed: int, limit: int) -> Images:
    """The first images of a split."""
    found: list[Images] = []
    for step in range(-(-min(task.count(split), limit) // BATCH)):
        rest = task.count(split) - step * BATCH
        found.append(task.batch(seed, step, BATCH, split, slice(0, rest)).x)
    return np.concatenate(found)[:limit]


def _kinds_of_images(task: Task, data: Images, split: Split) -> dict[str, Images]:
    """Images of the data, and others that they should be likelier than."""
    height, width, channels = data.shape[1:]
    rng = np.random.default_rng(0)
    pixels = data.reshape(len(data), -1, channels)
    turns = 1 if height == width else 2
    kinds = {
        f"{split} data": data,
        f"turned by {90 * turns}°": np.rot90(data, turns, axes=(1, 2)),
        "noise (pixels shuffled)": np.stack([rng.permutation(each) for each in pixels]).reshape(data.shape),
    }
    if other := other_images(task, len(data)):
        name, images = other
        kinds[name] = images
    return kinds


@torch.no_grad()
def _log_probabilities(network: nn.Module, images: Images) -> npt.NDArray[Any]:
    """(N,) in nats."""
    parts = [
        network(torch.from_numpy(np.ascontiguousarray(images[k : k + BATCH]))).double().sum((1, 2, 3))
        for k in range(0, len(images), BATCH)
    ]
    return torch.cat(parts).numpy()


def _sheet(name: str, images: Images) -> EmbeddedImage:
    return embed_panel(Panel(name, contact_sheet(images)))


def _pairs(left: Images, right: Images) -> EmbeddedImage:
    """Images beside others, as large as on the other sheets. Grey lines keep the pairs apart."""
    line = np.full((*left.shape[:2], 1, left.shape[3]), 0.5, np.float32)
    pairs = np.concatenate([left, line, right, line, line], axis=2)
    side = IMAGE_PIXELS * max(pairs.shape[1:3]) // max(left.shape[1:3])
    return embed_panel(Panel("neighbours", contact_sheet(pairs, side=side)))
