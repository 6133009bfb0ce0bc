"""The kind `segment`: one class at every position. The loss is the cross entropy at labelled positions."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from mdlstm_tk._util.text import counted, listing, quoted
from mdlstm_tk.data.folders import list_pairs
from mdlstm_tk.data.masks import UNKNOWN_VALUE, MaskClasses, RawMask, read_mask
from mdlstm_tk.data.samples import MemoryBudget, Survey
from mdlstm_tk.data.spec import UNLABELLED, Array, Batch, Extents, Floats, RawSample, Split, TaskSpec
from mdlstm_tk.data.targets import TargetOptions, Targets
from mdlstm_tk.errors import InputError
from mdlstm_tk.kinds.classes import ClassesKind
from mdlstm_tk.kinds.examples import covering
from mdlstm_tk.kinds.measures import class_measures, mean_of_numbers
from mdlstm_tk.kinds.segment import KIND
from mdlstm_tk.kinds.training_kind import COMMON_DEFAULTS, TargetRule

if TYPE_CHECKING:
    from torch import Tensor

    from mdlstm_tk.data.user_data import UserDataTask
    from mdlstm_tk.report.panels import Color, Panel


class Segment(ClassesKind):
    folder_format = "a folder with images/ and masks/"
    array_format = "an .npz file with x and integers y (N, H, W), or with one axis more"
    target_dtypes = "bui"
    further_files = ("classes.txt",)
    target_name = "mask"
    has_grid_targets = True
    shown_measures = ("recall", "precision", "iou")
    further_measures: ClassVar = {"iou": True}
    percentages = frozenset({*ClassesKind.error_names, *further_measures, *shown_measures})
    examples = 3
    pictured = 4
    # The state of "graves" may grow on images larger than the crops of the training, and masks go wrong.
    defaults = COMMON_DEFAULTS | {"augment": 1.0, "cell": "stable"}

    def target_axes(self, ndim: int) -> tuple[int, ...]:
        return (ndim + 1,)

    def list_folder(self, path: Path, budget: MemoryBudget) -> tuple[list[RawSample], list[str]]:
        return list_pairs(path, KIND.target_folder, read_mask, self.folder_format)

    def read_array(self, y: Array, index: int, extents: Extents, names: Sequence[str]) -> Any:
        pixels = np.asarray(y[index][tuple(map(slice, extents))])
        if pixels.dtype == np.uint64 and (highest := int(pixels.max(initial=0))) >= 2**63:
            raise InputError(f"a mask has the class {highest}, expected classes below 2⁶³")
        return RawMask(pixels.astype(np.int64))

    def survey(self, target: Any, survey_numbers: Callable[[Array], Any]) -> tuple[Any, Any]:
        return target.distinct(), target.pixels.astype(np.int64)

    def fit(self, targets: Sequence[Any], options: TargetOptions) -> Targets:
        masks = MaskClasses.of(targets)
        names = masks.names(options.mask_names)
        if twice := sorted(name for name, count in Counter(names).items() if count > 1):
            raise InputError(f"several values are called {quoted(twice)}; correct classes.txt")
        lines = [f"{counted(len(names), 'class', 'classes')} per position: {', '.join(names)}"]
        known = {*masks.values, *([UNKNOWN_VALUE] if masks.has_unknown else [])}
        texts = enumerate(map(str.strip, options.mask_names))
        if unused := [f"{name} ({value})" for value, name in texts if name and value not in known]:
            lines.append(f"classes.txt names values that no mask has: {listing(unused)}")
        if masks.has_unknown:
            lines.append(
                f"mask pixels of value {UNKNOWN_VALUE} are of unknown class and left out; "
                "if it is a class, store it as another value"
            )
        encode = partial(masks.encode, preprocessing=options.preprocessing)
        return Targets(len(names), encode, lines, names, masks)

    def complete(
        self, task: UserDataTask, splits: Mapping[Split, Sequence[Survey]], targets: Targets
    ) -> None:
        assert targets.masks is not None
        learned = {k for survey in splits["train"] for k in targets.masks.encode(survey.target).tolist()}
        if absent := [name for k, name in enumerate(targets.classes) if k not in learned]:
            task.summary = [*task.summary, f"classes without samples to train on: {', '.join(absent)}"]

    def collate(self, x: Array, targets: Sequence[Any], pad: Callable[..., Array]) -> Array:
        return pad(targets, x.shape[1:-1], UNLABELLED, np.int64)

    def rule(self, batch: Batch, spec: TaskSpec) -> TargetRule:
        shape = batch.x.shape[:-1]
        return TargetRule(np.int64, shape, (*shape, spec.outputs), UNLABELLED, spec.outputs - 1)

    def loss(self, prediction: Tensor, batch: Batch, spec: TaskSpec, columns: int | None) -> Tensor:
        from torch.nn.functional import cross_entropy

        from mdlstm_tk.kinds.sums import targets_like

        y = targets_like(prediction, batch)
        labelled = y != UNLABELLED
        losses = cross_entropy(prediction.movedim(-1, 1), y, ignore_index=UNLABELLED, reduction="none")
        return (losses.flatten(1).sum(1) / labelled.flatten(1).sum(1).clamp(min=1)).mean()

    def choose_examples(
        self, total: int, count: int, read_targets: Callable[[], Iterable[Array]]
    ) -> list[int]:
        return covering(read_targets(), count)

    def panels(self, batch: Batch, prediction: Floats, spec: TaskSpec, name: str) -> list[Panel]:
        from mdlstm_tk.report.panels import ERROR_COLOR, Panel, draw_input, draw_mask, visible

        x, truth = visible(batch.x, batch), visible(batch.y, batch)
        predicted, errors = visible(prediction, batch).argmax(-1), draw_input(x, fade=0.5)
        errors[(truth != UNLABELLED) & (predicted != truth)] = ERROR_COLOR
        return [
            Panel("input", draw_input(x), sample=name),
            Panel("prediction", draw_mask(x, predicted, spec)),
            Panel("truth", draw_mask(x, truth, spec)),
            Panel("errors", errors),
        ]

    def colors(self, spec: TaskSpec) -> dict[str, Color]:
        from mdlstm_tk.report.panels import class_colors

        return class_colors(spec)

    def summarize(
        self, errors: Mapping[str, float], sums: Mapping[str, Array], spec: TaskSpec
    ) -> dict[str, float]:
        """The mean intersection over union of the classes that there are or were predicted."""
        return {"iou": mean_of_numbers(class_measures(sums["confusion"])["iou"])}


TRAINING = Segment()
