"""The part of a run's report on a density model: drawn images beside those of the data."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from mdlstm_tk.data.task import SPLITS, Dataset, Split, Task
from mdlstm_tk.density.sampling import SIDE, contact_sheet, uniform_numbers
from mdlstm_tk.kinds.panels import Panel

DRAWN_IMAGES = 36  # beside as many of the data
PAIRS = 12  # drawn images beside their nearest neighbours
TRAINING_IMAGES = 10_000  # that neighbours are searched among, at most
BATCH = 64

Images = npt.NDArray[np.float32]  # (n, H, W, C)


def drawn_section(network: Any, task: Task) -> str:
    """HTML with images that a network has drawn, and with their nearest training images, which show whether
    it has learned these by heart; "" if it cannot draw, or the images differ in size."""
    if task.spec.mixed_sizes or not hasattr(network, "sample"):
        return ""
    split: Split = next((each for each in reversed(SPLITS) if task.count(each)), "train")
    height, width = task.spec.size
    uniform = uniform_numbers(0, DRAWN_IMAGES, (height, width), task.spec.channels)
    drawn = network.sample(DRAWN_IMAGES, (height, width), uniform=torch.from_numpy(uniform)).cpu().numpy()
    data = np.concatenate(list(_images(task, split, DRAWN_IMAGES)))
    panels = [
        Panel(f"{split} data", contact_sheet(data)),
        Panel("drawn by the network", contact_sheet(drawn)),
    ]
    nearest = nearest_images(drawn[:PAIRS], _images(task, "train", TRAINING_IMAGES))
    if nearest is not None:
        name = "drawn, with the nearest training image on the right"
        panels.append(Panel(name, _pairs(drawn[:PAIRS], nearest)))
    figures = (
        f'<figure><img src="{each.url}" alt="{each.name}"><figcaption>{each.name}</figcaption></figure>\n'
        for each in panels
    )
    return f'<section id="drawn">\n<h2>Drawn images</h2>\n{"".join(figures)}</section>'


def nearest_images(images: Images, batches: Iterable[Images]) -> Images | None:
    """For each image the one of the batches with the smallest sum of squared differences; None if there are
    no batches."""
    nearest, smallest = np.zeros_like(images), np.full(len(images), np.inf)
    for batch in batches:
        for k, image in enumerate(images):
            distances = np.square(batch - image).sum((1, 2, 3))
            if distances.min() < smallest[k]:
                smallest[k], nearest[k] = distances.min(), batch[distances.argmin()]
    return nearest if np.isfinite(smallest).all() else None


def _images(task: Task, split: Split, limit: int) -> Iterator[Images]:
    """The first images of a split, in batches; a task that generates them has any number."""
    count = min(task.count(split) or (0 if isinstance(task, Dataset) else limit), limit)
    for step in range(-(-count // BATCH)):
        yield task.batch(0, step, BATCH, split, slice(0, count - step * BATCH)).x


def _pairs(left: Images, right: Images) -> npt.NDArray[np.uint8]:
    """Images beside others, as large as on the other sheets. Grey lines keep the pairs apart."""
    line = np.full((*left.shape[:2], 1, left.shape[3]), 0.5, np.float32)
    pairs = np.concatenate([left, line, right, line, line], axis=2)
    return contact_sheet(pairs, SIDE * max(pairs.shape[1:3]) // max(left.shape[1:3]))
