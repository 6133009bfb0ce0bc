"""The kind `density`: the probability of a sample. The loss is the negative log-probability in nats.

The targets of a batch are x itself. The outputs of a task are the levels of each channel, or 1 for two.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from math import isnan, log
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np

from mdlstm_tk.errors import InputError
from mdlstm_tk.io import Array
from mdlstm_tk.io.metadata import Metadata
from mdlstm_tk.kinds.kind import COMMON, Kind, Labels, Row

if TYPE_CHECKING:
    from torch import Tensor, nn

    from mdlstm_tk.data.files import Sample
    from mdlstm_tk.data.task import Batch, Task, TaskSpec
    from mdlstm_tk.io.images import Preprocessing
    from mdlstm_tk.kinds.panels import Panel

NUMBER_DIGITS = 4  # of nats and bits


class Density(Kind):
    name = "density"
    layout = "a folder with images, or an .npz file with x (N, H, W) or (N, H, W, C) in [0, 1]"
    defaults = COMMON | {"model": "pixel", "layers": 2, "batch_size": 32}
    answers = "rows"
    next_verb = "sample"
    x_range = (0.0, 1.0)

    def samples(self, path: Path) -> list[Sample]:
        from mdlstm_tk.data.files import given, image_sample, images_below, is_npz, of_arrays

        if is_npz(path):
            return of_arrays(path, None)
        return [image_sample(path, file, partial(given, None)) for file in images_below(path)]

    def fit(
        self, train: Sequence[Any], every: Sequence[Any], prepare: Preprocessing | None, config: Any
    ) -> Labels:
        return Labels(config.levels if config.levels > 2 else 1)

    def collate(self, x: Array, targets: Sequence[Any]) -> Array:
        return x

    def loss(self, prediction: Tensor, batch: Batch, spec: TaskSpec) -> Tensor:
        from mdlstm_tk.kinds.measures import check_shape, mean_of_positions

        y: Any = batch.y
        check_shape(prediction, y)
        return mean_of_positions(-prediction, batch)

    def sums(self, prediction: Tensor, batch: Batch, spec: TaskSpec) -> dict[str, Tensor]:
        """(3,) the nats of all samples, and the numbers of samples and of values."""
        from torch import stack, tensor

        from mdlstm_tk._util.masking import valid_mask

        nats, sizes = -prediction.double(), cast("Tensor | None", batch.sizes)
        if sizes is not None:
            nats = nats[valid_mask(nats.shape[1:-1], sizes)]
        total = nats.sum()
        return {"nats": stack([total, *tensor([len(prediction), nats.numel()]).to(total)])}

    def measures(self, sums: Mapping[str, Array], spec: TaskSpec) -> dict[str, float]:
        """The nats of a sample, and the bits of each of its values."""
        nats, samples, values = map(float, sums["nats"])
        return {"nats": nats / samples, "bits_per_dim": nats / log(2) / values}

    def decode(  # type: ignore[override]
        self, y: Array, metadata: Metadata, *, sizes: Any = None
    ) -> list[Row]:
        """The negative log-probability of each sample in nats, and in bits for each of its values.

        Args:
            y, metadata: of the model.
            sizes: valid extents of padded samples (N, D), as the model got them.
        """
        if metadata.takes_sizes and sizes is None:
            raise InputError("y may be that of padded samples; give the sizes that the model got, too")
        rows = []
        for k, sample in enumerate(y):
            sample = sample if sizes is None else sample[metadata.region(sizes[k])]
            nats = 0.0 - float(sample.sum(dtype="float64"))  # which is not -0.0
            if isnan(nats):
                raise InputError("the log-probabilities hold NaN; the model diverged")
            bits = nats / log(2) / sample.size
            rows.append({"nats": round(nats, NUMBER_DIGITS), "bits_per_dim": round(bits, NUMBER_DIGITS)})
        return rows

    def draw(self, batch: Batch, prediction: Array, spec: TaskSpec) -> list[Panel]:
        """The input, and how surprising each position is, given those before it."""
        from mdlstm_tk.kinds.panels import Panel, draw_input, draw_values, visible

        surprise = -np.asarray(visible(prediction, batch)).sum(-1)
        highest = float(surprise.max())
        return [
            Panel(f"{surprise.sum():.1f} nats", draw_input(visible(batch.x, batch))),
            Panel(f"surprise  0 … {highest:.3g} nats", draw_values(surprise, 0.0, highest, "magma")),
        ]

    def sections(self, network: nn.Module, task: Task, folder: Path) -> str:
        from mdlstm_tk.density.report import drawn_section

        return drawn_section(network, task)


KIND = Density()
