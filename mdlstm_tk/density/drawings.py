"""The part of a run's report on a density model: drawn images, their neighbours, and log-probabilities."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import numpy as np
import numpy.typing as npt
import torch
from jinja2 import Environment
from torch import nn

from mdlstm_tk.data.builtin.digits import load_digits
from mdlstm_tk.data.task import SPLITS, Dataset, Split, Task
from mdlstm_tk.density.contact_sheet import IMAGE_PIXELS, contact_sheet
from mdlstm_tk.density.digits import binarise
from mdlstm_tk.density.sampling import draw_images
from mdlstm_tk.errors import MissingExtraError, require
from mdlstm_tk.io import Array
from mdlstm_tk.io.images import resize, to_grey
from mdlstm_tk.kinds.panels import Panel

DRAWN_IMAGES = 36  # images beside as many of the data
PAIRS = 12  # drawn images beside their nearest neighbours
TRAINING_IMAGES = 10_000  # that neighbours are searched among, at most
MEASURED_IMAGES = 256  # images of each kind whose log-probability is measured, at most
BATCH = 64
PIECE = 32  # pixels of a side of the pieces of photographs
MIN_CONTRAST = 0.1  # of a piece whose darkest and brightest pixels become 0 and 1

Images = npt.NDArray[np.float32]


TEMPLATE = """
<section id="drawn">
<h2>Drawn images</h2>
{% for panel in panels %}
<figure><img src="{{ panel.url }}" alt="{{ panel.name }}"><figcaption>{{ panel.name }}</figcaption></figure>
{% endfor %}
{% if searched %}
<p>The nearest image has the smallest sum of squared differences, of {{ searched }} training images.</p>
{% endif %}
<h3>What is likely</h3>
<p>The data should have the largest log-probability, but a model can find other images likelier if they are
simpler than the data.</p>
<table>
<caption>Mean log-probability of at most {{ count }} images of each kind.</caption>
<tr><th scope="col">images</th><th scope="col">nats</th></tr>
{% for name, nats in means.items() %}
<tr><th scope="row">{{ name }}</th><td>{{ "%.1f" % nats }}</td></tr>
{% endfor %}
</table>
</section>
"""


def drawn_section(network: nn.Module, task: Task) -> str:
    """HTML with images that a network has drawn, and what it finds likely; "" if it cannot draw, or the
    images differ in size."""
    if task.spec.mixed_sizes or not hasattr(network, "sample"):
        return ""
    split: Split = next((each for each in reversed(SPLITS) if task.count(each)), "train")
    height, width = task.spec.size
    data = np.concatenate(list(_images(task, split, MEASURED_IMAGES)))
    drawn = draw_images(network, DRAWN_IMAGES, (height, width), task.spec.channels)
    nearest, searched = nearest_images(drawn[:PAIRS], _images(task, "train", TRAINING_IMAGES))
    kinds = {f"{split} data": data, **images_unlike(task, data)}
    panels = [
        Panel(f"{split} data", contact_sheet(data[:DRAWN_IMAGES])),
        Panel("drawn by the network", contact_sheet(drawn)),
    ]
    if searched:
        name = "drawn, with the nearest training image on the right"
        panels.append(Panel(name, _pairs(drawn[:PAIRS], nearest)))
    means = {name: float(_log_probabilities(network, images).mean()) for name, images in kinds.items()}
    template = Environment(autoescape=True, trim_blocks=True).from_string(TEMPLATE)
    return template.render(panels=panels, searched=searched, count=len(data), means=means)


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
    is_digits = task.spec.name.startswith("digits")
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


def _images(task: Task, split: Split, limit: int) -> Iterator[Images]:
    """The first images of a split, in batches; a task that generates them has any number."""
    count = min(task.count(split) or (0 if isinstance(task, Dataset) else limit), limit)
    for step in range(-(-count // BATCH)):
        yield task.batch(0, step, BATCH, split, slice(0, count - step * BATCH)).x


@torch.no_grad()
def _log_probabilities(network: nn.Module, images: Images) -> Array:
    """(N,) in nats."""
    device = next(network.parameters()).device
    parts = np.split(np.ascontiguousarray(images), range(BATCH, len(images), BATCH))
    each = [network(torch.from_numpy(part).to(device)).double().sum((1, 2, 3)) for part in parts]
    return torch.cat(each).cpu().numpy()


def _pairs(left: Images, right: Images) -> npt.NDArray[np.uint8]:
    """Draw images beside others, as large as on the other sheets. Grey lines keep the pairs apart."""
    line = np.full((*left.shape[:2], 1, left.shape[3]), 0.5, np.float32)
    pairs = np.concatenate([left, line, right, line, line], axis=2)
    side = IMAGE_PIXELS * max(pairs.shape[1:3]) // max(left.shape[1:3])
    return contact_sheet(pairs, side=side)
