"""The examples that a page offers: samples of the validation data of the run that its model came from."""

from __future__ import annotations

import base64
from collections.abc import Iterator
from dataclasses import replace
from math import prod
from pathlib import Path
from typing import Any

import numpy as np

from mdlstm_tk._util.sizes import format_size
from mdlstm_tk.data import Split, Task
from mdlstm_tk.errors import InputError
from mdlstm_tk.export.run_export import find_checkpoint
from mdlstm_tk.io import Array
from mdlstm_tk.io.images import scale
from mdlstm_tk.io.metadata import Metadata
from mdlstm_tk.runtime.shapes import takes
from mdlstm_tk.training import Run, load_checkpoint, make_task

COUNT = 6
CANDIDATES = 200  # samples that are looked through for different targets and for sizes that fit the model
MAX_POSITIONS = 512 * 512  # as POSITIONS in static/app.js


def page_examples(run: Run | str | Path, metadata: Metadata, data: str = "") -> list[dict[str, Any]]:
    """Samples of a run's validation data that a model takes, of different classes if there are such.

    Args:
        run: the run that the model was exported from.
        metadata: of the model.
        data: where the user's data are, if the run was trained on such. They are not opened unless they are
            named: a run may come from a stranger, and the page would publish them.

    Returns:
        At most six examples, as `examples.json` stores them.

    Raises:
        InputError: the data are the user's, and not named or not there, or no sample fits.
    """
    checkpoint = load_checkpoint(find_checkpoint(run)[1])
    if checkpoint.config.data and not data:
        raise InputError("the run was trained on data of yours; name them with --data")
    config, grid = replace(checkpoint.config, data=data), metadata.grid_like(checkpoint.spec.size)
    if config.size and grid != checkpoint.spec.size:
        config = replace(config, size=format_size(grid))
    samples = list(_samples(make_task(config, checkpoint.state.learned), metadata))
    if not samples:
        raise InputError("no sample of the data has a size that the model takes")
    targets = [target for _, target in samples]
    # The second sample of a class comes after the first one of all classes.
    order = sorted(range(len(samples)), key=lambda k: targets[:k].count(targets[k]))
    return [to_example(*samples[k]) for k in order[:COUNT]]


def _samples(task: Task, metadata: Metadata) -> Iterator[tuple[Array, str | None]]:
    """The first samples (H, W, C) that the model takes, of validation if there are such, and their targets:
    the class or the text; None for others."""
    splits: tuple[Split, ...] = "validation", "test"
    split: Split = next((split for split in splits if task.count(split)), "train")
    for step in range(min(task.count(split), CANDIDATES)):
        batch = task.batch(0, step, 1, split)
        extents = batch.x.shape[1:-1] if batch.sizes is None else batch.sizes[0].tolist()
        if takes(extents, metadata) and prod(extents) <= MAX_POSITIONS:
            y, classes, target = batch.y[0], task.spec.classes, None
            if classes and y.dtype.kind == "i" and y.ndim < 2:
                # One class, or the characters of a text, which count from 1.
                target = classes[int(y)] if y.ndim == 0 else "".join(classes[k - 1] for k in y if k > 0)
            yield batch.x[0][tuple(map(slice, extents))], target


def to_example(x: Array, target: str | None = None) -> dict[str, Any]:
    """An example as `examples.json` stores it: x (H, W, C) as bytes if it is an image with 8 bits, each
    divided by 255, else as little-endian float32."""
    pixels = np.rint(x * 255).clip(0, 255).astype(np.uint8)
    stored = pixels if np.array_equal(scale(pixels), x) else x.astype("<f4")
    values = base64.b64encode(stored.tobytes()).decode()
    return {"shape": x.shape, "dtype": stored.dtype.name, "data": values, "target": target}
