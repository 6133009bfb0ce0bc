"""The examples that a page offers: samples of the validation data of the run that the model came from."""

from __future__ import annotations

import base64
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from mdlstm_tk._util.sizes import format_size
from mdlstm_tk._util.text_order import reorder
from mdlstm_tk.data import Split, Task, TaskSpec
from mdlstm_tk.errors import InputError, MDLSTMError
from mdlstm_tk.io import Array
from mdlstm_tk.io.images import scale
from mdlstm_tk.io.metadata import Metadata
from mdlstm_tk.runtime.shapes import takes
from mdlstm_tk.training import Run, load_checkpoint, make_task

COUNT = 6
CANDIDATES = 200  # samples that are looked through for different classes and for sizes that fit the model
MAX_EXTENT = 512  # as LIMIT in static/files.js
MAX_BYTES = 2**21  # of all examples, as they are stored


@dataclass(frozen=True)
class PageExample:
    """An input of a model, for its page.

    Attributes:
        x: (H, W, C).
        target: the right answer: the class or the text; None if it is a grid.
    """

    x: Array
    target: str | None = None

    def to_json(self) -> dict[str, Any]:
        """The example as `examples.json` stores it."""
        data = self.stored()
        extents = dict(zip(("height", "width", "channels"), data.shape, strict=True))
        values = base64.b64encode(data.tobytes()).decode()
        return {**extents, "target": self.target, "dtype": data.dtype.name, "data": values}

    def stored(self) -> npt.NDArray[Any]:
        """x as uint8 if it is an image with 8 bits, divided by 255; else as little-endian float32."""
        pixels = np.rint(self.x * 255).clip(0, 255).astype(np.uint8)
        return pixels if np.array_equal(scale(pixels), self.x) else self.x.astype("<f4")


def page_examples(
    run: Run,
    metadata: Metadata,
    data: str = "",
    on_message: Callable[[str], None] = lambda message: None,
) -> list[PageExample]:
    """Choose samples of a run's validation data that the model takes; of different classes if it has any.

    Args:
        run: the run that the model was exported from.
        metadata: of the exported model.
        data: where the user's data are, if the run was trained on such. They are not opened unless they are
            named: a run may come from a stranger, and the page would publish them.
        on_message: called with one line if there are no examples.

    Returns:
        At most `COUNT` examples of `MAX_BYTES` in all; none if the user's data are not named or not there,
        no sample fits, or the run's checkpoint is not in its folder.
    """
    try:
        checkpoint = load_checkpoint(run.checkpoint)
        config = replace(checkpoint.config, data=data)
        if checkpoint.config.data and not data:
            raise InputError("the run was trained on data of yours; name them with --data")
        grid = metadata.grid_like(checkpoint.spec.size)
        if config.size and grid != checkpoint.spec.size:
            config = replace(config, size=format_size(grid))
        samples = list(_samples(make_task(config, checkpoint.state.learned), metadata))
    except MDLSTMError as error:
        on_message(f"no examples: {error}")
        return []
    if not samples:
        on_message("no examples: no sample of the data has a size that the model takes")
        return []
    targets = [sample.target for sample in samples]
    # the second sample of a class comes after the first one of all classes
    order = sorted(range(len(samples)), key=lambda k: targets[:k].count(targets[k]))
    chosen, left = list[PageExample](), MAX_BYTES
    for sample in (samples[k] for k in order):
        size = sample.stored().nbytes
        if size <= left and len(chosen) < COUNT:
            chosen, left = [*chosen, sample], left - size
    if not chosen:
        on_message(f"no examples: each sample takes more than the {MAX_BYTES} bytes of all examples")
    return chosen


def _samples(task: Task, metadata: Metadata) -> Iterator[PageExample]:
    """The first samples that the model takes, of the validation data if there are such."""
    splits: tuple[Split, ...] = "validation", "test"
    split: Split = next((split for split in splits if task.count(split)), "train")
    for step in range(min(task.count(split), CANDIDATES)):
        batch = task.batch(0, step, 1, split)
        extents = batch.x.shape[1:-1] if batch.sizes is None else batch.sizes[0].tolist()
        x = batch.x[0][tuple(map(slice, extents))]
        if takes(x.shape[:-1], metadata) and (metadata.grid or max(extents) <= MAX_EXTENT):
            yield PageExample(x, _words(batch.y[0], task.spec))


def _words(y: Array, spec: TaskSpec) -> str | None:
    """A target that is a class, or a line of text, whose characters count from 1; None for another."""
    if y.dtype.kind != "i" or y.ndim > 1 or not spec.classes:
        return None
    if y.ndim == 0:
        return spec.classes[int(y)]
    text = "".join(spec.classes[k - 1] for k in y if k > 0)
    return reorder(text, spec.decoding.get("text_direction", "ltr"))
