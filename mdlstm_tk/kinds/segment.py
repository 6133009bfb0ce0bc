"""The kind `segment`: one class at every position. The loss is the cross entropy at labelled positions."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from mdlstm_tk.io import Array
from mdlstm_tk.io.metadata import Metadata
from mdlstm_tk.kinds.kind import COMMON, Kind, Labels, check_scores, softmax

if TYPE_CHECKING:
    from torch import Tensor

    from mdlstm_tk.data.files import Sample
    from mdlstm_tk.data.masks import Mask
    from mdlstm_tk.data.task import Batch, TaskSpec
    from mdlstm_tk.io.images import Preprocessing
    from mdlstm_tk.kinds.panels import Panel


class Segment(Kind):
    name = "segment"
    layout = "a folder with images/ and masks/, or an .npz file with x and integers y of the grid of x"
    # The state of "graves" may grow on images larger than the crops of the training, and masks go wrong.
    defaults = COMMON | {"augment": 1.0, "cell": "stable"}
    per_position = True
    higher = frozenset({"iou"})
    answers = "png"
    targets = "masks"

    def samples(self, path: Path) -> list[Sample]:
        from mdlstm_tk.data.files import is_npz, of_arrays, of_pairs
        from mdlstm_tk.data.masks import class_names, mask_of_array, read_mask

        if is_npz(path):
            return of_arrays(path, mask_of_array, "bui", has_grid=True)
        return of_pairs(path, self.targets, partial(read_mask, names=class_names(path)))

    def summary(self, target: Mask) -> Mask:
        return target._replace(pixels=np.stack(np.unique(target.pixels, return_counts=True)))

    def fit(
        self, train: Sequence[Any], every: Sequence[Any], prepare: Preprocessing | None, config: Any
    ) -> Labels:
        from mdlstm_tk.data.masks import MaskClasses

        masks = MaskClasses.of(every)
        decoding = {"mask_values": masks.values, "mask_palette": masks.palette}
        decoding["mask_unknown"] = masks.unknown
        return Labels(len(masks.names), masks.names, decoding=decoding)

    def encoder(self, spec: TaskSpec) -> Callable[[Any], Any]:
        from mdlstm_tk.data.masks import MaskClasses

        names = ("mask_values", "mask_palette", "mask_unknown")
        values, palette, unknown = (tuple(spec.decoding[name]) for name in names)
        return MaskClasses(values, palette, spec.classes, unknown, spec.preprocessing).encode

    def collate(self, x: Array, targets: Sequence[Any]) -> Array:
        from mdlstm_tk.data.task import UNLABELLED, pad

        return pad(targets, UNLABELLED, np.int64)

    def loss(self, prediction: Tensor, batch: Batch, spec: TaskSpec) -> Tensor:
        from torch.nn.functional import cross_entropy

        from mdlstm_tk.data.task import UNLABELLED

        scores, y = prediction.movedim(-1, 1), batch.y
        losses = cross_entropy(scores, y, ignore_index=UNLABELLED, reduction="none").flatten(1).sum(1)
        means: Tensor = losses / (y != UNLABELLED).flatten(1).sum(1).clamp(min=1)
        return means.mean()

    def sums(self, prediction: Tensor, batch: Batch, spec: TaskSpec) -> dict[str, Tensor]:
        from mdlstm_tk.kinds.measures import class_counts

        return {"classes": class_counts(prediction, batch.y)}

    def measures(self, sums: Mapping[str, Array], spec: TaskSpec) -> dict[str, float]:
        """The share of positions that is wrong, and the mean intersection over union of the classes that
        there are or were predicted."""
        from mdlstm_tk.kinds.measures import mean, of_classes

        right, true, _ = sums["classes"]
        with np.errstate(invalid="ignore"):  # no position may be labelled
            error = float((true.sum() - right.sum()) / true.sum())
        return {"error": error, "iou": mean(of_classes(sums["classes"])["iou"])}

    def outputs(self, sums: Mapping[str, Array], spec: TaskSpec) -> dict[str, dict[str, float]]:
        from mdlstm_tk.kinds.measures import by_output, of_classes

        measures = of_classes(sums["classes"])
        names = ("count", "recall", "precision", "iou")
        return by_output(spec.classes, {name: measures[name] for name in names})

    def name_count(self, outputs: int) -> int:
        return outputs

    def decode(  # type: ignore[override]
        self, y: Array, metadata: Metadata, *, probabilities: bool = False
    ) -> Array:
        """Masks (N, *grid) of the values that the classes have in the masks of training, in the smallest
        dtype of integers that holds them; or the `probabilities` of the classes, in the shape of y."""
        axis = metadata.class_axis(y)
        check_scores(y, axis)
        if probabilities:
            return softmax(y, axis)
        values = np.asarray(metadata.mask_values or range(metadata.outputs))
        low, high = int(values.min()), int(values.max())
        # Beside a negative value, the largest one needs a signed dtype: one that holds -1 - high.
        dtype = np.result_type(*map(np.min_scalar_type, (low, -1 - high if low < 0 <= high else high)))
        mask: Array = values.astype(dtype)[y.argmax(axis)]
        return mask

    def draw(self, batch: Batch, prediction: Array, spec: TaskSpec) -> list[Panel]:
        from mdlstm_tk.data.task import UNLABELLED
        from mdlstm_tk.kinds.panels import ERROR_COLOR, Panel, class_colors, draw_input, draw_mask, visible

        x, truth = visible(batch.x, batch), visible(batch.y, batch)
        predicted, errors = visible(prediction, batch).argmax(-1), draw_input(x, fade=0.5)
        errors[(truth != UNLABELLED) & (predicted != truth)] = ERROR_COLOR
        colors = class_colors(spec)
        return [
            Panel("input", draw_input(x)),
            Panel("prediction", draw_mask(x, predicted, colors)),
            Panel(
                "truth", draw_mask(x, truth, colors), legend=dict(zip(spec.classes, colors, strict=True))
            ),
            Panel("errors", errors),
        ]


KIND = Segment()
