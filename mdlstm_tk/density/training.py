"""The kind `density`: the probability of a sample. The loss is the negative log-probability in nats.

The targets of a batch are x itself. The outputs of a task are the levels of each channel, or 1 for two.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from math import log
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from mdlstm_tk.data.folders import find_images, image_sample
from mdlstm_tk.data.samples import MemoryBudget
from mdlstm_tk.data.spec import Array, Batch, Extents, Floats, RawSample, Split, TaskSpec
from mdlstm_tk.data.targets import TargetOptions, Targets, unchanged
from mdlstm_tk.density.idx import find_idx, read_idx
from mdlstm_tk.density.kind import KIND
from mdlstm_tk.kinds.kind import RANGE_TOLERANCE
from mdlstm_tk.kinds.report_kind import Reported
from mdlstm_tk.kinds.training_kind import COMMON_DEFAULTS, Sums, TargetRule, TrainingKind

if TYPE_CHECKING:
    from torch import Tensor, nn

    from mdlstm_tk.report.evaluation import Example
    from mdlstm_tk.report.panels import Panel
    from mdlstm_tk.training.config import TrainConfig

NO_TARGET = partial(unchanged, None)


class Density(TrainingKind):
    folder_format = "a folder with images, or with IDX files such as train-images-idx3-ubyte"
    array_format = "an .npz file with x (N, H, W) or (N, H, W, C) in [0, 1]"
    target_dtypes = ""
    is_normalized = False
    is_planar = True
    error_names = ("nats", "bits_per_dim")
    report_template = "density/report.html"
    defaults = COMMON_DEFAULTS | {"model": "pixel", "layers": 2, "batch_size": 32}
    next_verb = "sample"

    def list_folder(self, path: Path, budget: MemoryBudget) -> tuple[list[RawSample], list[str]]:
        return [image_sample(path, file, NO_TARGET) for file in find_images(path)], []

    def find_files(self, path: Path) -> dict[Split, Path]:
        return find_idx(path)

    def list_file(self, path: Path) -> list[RawSample]:
        images = [partial(np.asarray, image) for image in read_idx(path)]
        return [RawSample(f"image {k}", x, NO_TARGET, is_image=True) for k, x in enumerate(images)]

    def read_array(self, y: Array, index: int, extents: Extents, names: Sequence[str]) -> Any:
        return None

    def fit(self, targets: Sequence[Any], options: TargetOptions) -> Targets:
        levels = options.settings.get("levels", 2)
        names = "2 levels, as 0 or 1" if levels == 2 else f"{levels} levels"
        note = f"each value counts as the nearest of {names}; choose others with --levels"
        return Targets(levels if levels > 2 else 1, unchanged, [note])

    def collate(self, x: Array, targets: Sequence[Any], pad: Callable[..., Array]) -> Array:
        return x

    def rule(self, batch: Batch, spec: TaskSpec) -> TargetRule:
        shape, (low, high) = batch.x.shape, KIND.x_range
        return TargetRule(np.floating, shape, shape, low - RANGE_TOLERANCE, high + RANGE_TOLERANCE)

    def loss(self, prediction: Tensor, batch: Batch, spec: TaskSpec, columns: int | None) -> Tensor:
        from mdlstm_tk.kinds.sums import mean_of_positions

        return mean_of_positions(-prediction, batch)

    def output_meanings(self, spec: TaskSpec) -> Sequence[str | float]:
        """The value of each level; a single one is white's."""
        highest = max(spec.outputs, 2) - 1
        return [level / highest for level in range(highest + 1)][-spec.outputs :]

    def panels(self, batch: Batch, prediction: Floats, spec: TaskSpec, name: str) -> list[Panel]:
        """The input, and how surprising each position is, given those before it."""
        from mdlstm_tk.report.panels import Panel, draw_input, draw_values, format_range, visible

        surprise = -visible(prediction, batch).sum(-1)
        limits = 0.0, float(surprise.max())
        colors = draw_values(surprise, *limits, "magma")
        return [
            Panel(f"{surprise.sum():.1f} nats", draw_input(visible(batch.x, batch)), sample=name),
            Panel("surprise", colors, f"{format_range(*limits)} nats"),
        ]

    def picture(
        self, examples: Sequence[Example], network: nn.Module, config: TrainConfig, split: Split
    ) -> list[Panel]:
        """Samples, and images that the network has drawn."""
        from mdlstm_tk.density.drawings import picture

        return picture(examples, network, config, split)

    def report_values(self, reported: Reported) -> dict[str, Any]:
        from mdlstm_tk.density.drawings import make_drawings

        network, task, config, *_ = reported
        return {"drawings": make_drawings(network, task, config) if task is not None else None}

    def measures(self, prediction: Tensor, batch: Batch, spec: TaskSpec) -> Sums:
        from mdlstm_tk.kinds.sums import sum_of_positions

        nats, count = sum_of_positions(-prediction.double(), batch)
        return {"nats": (nats, float(len(batch.x))), "bits_per_dim": (nats / log(2), count)}


TRAINING = Density()
