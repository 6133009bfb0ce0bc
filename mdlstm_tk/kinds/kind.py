"""The protocol of a kind of task: what a target is, from the user's files to the answer of a model.

Nothing here imports torch when it is imported, as inference asks a kind, too.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from mdlstm_tk.errors import InputError
from mdlstm_tk.io import Array
from mdlstm_tk.io.metadata import Metadata

if TYPE_CHECKING:
    from torch import Tensor, nn

    from mdlstm_tk.data.files import Sample
    from mdlstm_tk.data.task import Batch, Task, TaskSpec
    from mdlstm_tk.io.images import Preprocessing
    from mdlstm_tk.kinds.panels import Panel

Row = dict[str, Any]
"""The answer for a sample: JSON values by the names of their columns. Lists are in json alone."""
Predict = Callable[["Batch"], tuple["Tensor", "Batch"]]
"""The prediction of a trained network for a batch, and the batch as tensors, on the CPU."""
PROBABILITY_DIGITS = 6
COMMON: dict[str, Any] = {
    "size": "",
    "steps": 3000,
    "hidden": 32,
    "lr": 0.005,
    "weight_decay": 0.0,
    "schedule": "cosine",
    "warmup": 100,
    "clip": 1.0,
    "average": 0.99,
    "evaluate_every": 100,
    "patience": 10,
}


@dataclass(frozen=True)
class Labels:
    """Properties that the targets of a data set share.

    Attributes:
        outputs: of the network.
        classes: the names of outputs, or of characters.
        mean, std: of outputs that are numbers, in training.
        decoding: what `Kind.decode` needs to know beyond the names.
    """

    outputs: int
    classes: tuple[str, ...] = ()
    mean: tuple[float, ...] = ()
    std: tuple[float, ...] = ()
    decoding: Mapping[str, Any] = field(default_factory=dict)


class Kind(ABC):
    """A kind of task. A class of its own answers what differs from numbers at every position.

    Attributes:
        name: on the command line, in runs and in exported files.
        layout: of the user's files, in words.
        defaults: the settings that suit it, by key of `TrainConfig`.
        networks: the kind whose networks it takes, too.
        per_position: a target has the grid of x, with which it is cropped and distorted.
        higher: the measures of which higher values are better.
        answers: "rows" if `decode` returns a row for each sample, else the file format of its arrays for
            images.
        axes: of an output without a grid, in words, as "N" or "N, T".
        targets: the folder or table beside images that holds their targets, which `infer` leaves out.
        x_range: the lowest and the highest value of x; None: any, and the network standardises x.
        next_verb: of the command line, to try on a trained run.
        reads_lines: x is the image of a line, and the steps of an output (N, T, outputs) are its columns.
    """

    name: ClassVar[str]
    layout: ClassVar[str] = ""
    defaults: ClassVar[Mapping[str, Any]] = COMMON
    networks: ClassVar[str] = ""
    per_position: ClassVar[bool] = False
    next_verb: ClassVar[str] = "export"
    higher: ClassVar[frozenset[str]] = frozenset()
    answers: ClassVar[str] = "npy"
    axes: ClassVar[str] = ""
    targets: ClassVar[str] = ""
    x_range: ClassVar[tuple[float, float] | None] = None
    reads_lines: ClassVar[bool] = False

    # The user's files

    @abstractmethod
    def samples(self, path: Path) -> list[Sample]:
        """The samples of a folder or file, see `mdlstm_tk.data.files`."""

    def summary(self, target: Any) -> Any:
        """The part of a target that `fit` needs, small enough to keep for all samples.

        Raises:
            InputError: the target cannot be used; its sample is left out.
        """
        return target

    def stratum(self, summary: Any) -> str:
        """The class of a target; a share of each is held out for validation."""
        return ""

    @abstractmethod
    def fit(
        self, train: Sequence[Any], every: Sequence[Any], prepare: Preprocessing | None, config: Any
    ) -> Labels:
        """Outputs and names.

        Args:
            train, every: the summaries of the targets to train on, and of all.
            prepare: how images become x; None of arrays.
            config: the settings of the run.
        """

    def encoder(self, spec: TaskSpec) -> Callable[[Any], Any] | None:
        """What makes of the target of a sample what `collate` takes, and raises `InputError` where the spec
        has no output for it; pickle knows it. None: the target stays as it is."""
        return None

    # Training

    @abstractmethod
    def collate(self, x: Array, targets: Sequence[Any]) -> Array:
        """y of a batch, padded like x (N, *grid, C) if it has its grid."""

    def distort(self, samples: Sequence[Any], rngs: Sequence[Any], strength: float) -> list[Any]:
        """Distorted copies of samples (x, target), each by its own random generator."""
        from mdlstm_tk.data.augment import distort

        return distort(samples, rngs, strength, self.per_position)

    @abstractmethod
    def loss(self, prediction: Tensor, batch: Batch, spec: TaskSpec) -> Tensor:
        """The mean over the samples of the loss of each. The batch is on the device of the prediction."""

    @abstractmethod
    def sums(self, prediction: Tensor, batch: Batch, spec: TaskSpec) -> dict[str, Tensor]:
        """Of a batch, by name, what the measures are computed from once it is added up over all batches."""

    @abstractmethod
    def measures(self, sums: Mapping[str, Array], spec: TaskSpec) -> dict[str, float]:
        """The measures of a split. The first, of which lower is better, chooses the best weights."""

    def outputs(self, sums: Mapping[str, Array], spec: TaskSpec) -> dict[str, dict[str, float]]:
        """The measures of each output, such as a class, for `result.json` and reports."""
        return {}

    def calibrate(self, predict: Predict, task: Task, folder: Path) -> Mapping[str, Any]:
        """Choose on validation data how outputs become answers, for `TaskSpec.decoding`. It may write files
        into the folder of the run."""
        return {}

    # Inference

    def name_count(self, outputs: int) -> int:
        """The number of names that so many outputs have; 0 if they have none."""
        return 0

    def decode(self, y: Array, metadata: Metadata, **options: Any) -> list[Row] | Array:
        """The answers of a model.

        Args:
            y: its first output, (N, *grid, outputs), (N, outputs) or another shape of the kind.
            metadata: of the model.
            **options: those that a kind names in its own signature are options of `infer_paths` and of
                `mdlstm_tk.runtime.decode`. Where it names `sizes` or `widths`, `infer_paths` fills them in:
                the valid extents of padded samples (N, D), or None, and the columns of x with the width of
                its image in pixels, or None.

        Returns:
            A row for each sample if `answers` is "rows", else an array (N, …).

        Raises:
            InputError: an option does not suit the model, or y holds no answer.
        """
        return y

    # Reports

    def draw(self, batch: Batch, prediction: Array, spec: TaskSpec) -> list[Panel]:
        """The pictures of a sample, a batch of one, and of its prediction."""
        from mdlstm_tk.kinds.panels import Panel, draw_input, visible

        return [Panel("input", draw_input(visible(batch.x, batch)))]

    def sections(self, network: nn.Module, task: Task, folder: Path) -> str:
        """HTML that the report of a run shows below its examples.

        Args:
            network: has the best weights.
            task: of the run, whose spec has its decoding.
            folder: of the run.
        """
        return ""


class Numbers(Kind):
    """A model that names no kind, or one that nobody has registered: it returns numbers."""

    name = ""
    samples = fit = collate = loss = sums = measures = None  # type: ignore[assignment]


NO_KIND = Numbers()


def softmax(y: Array, axis: int = -1) -> Array:
    """The probabilities of classes, from scores in the same shape."""
    exponentials = np.exp(y - y.max(axis=axis, keepdims=True))
    return np.asarray(exponentials / exponentials.sum(axis=axis, keepdims=True))


def sigmoid(y: Array) -> Array:
    """The logistic function, without overflow."""
    return np.asarray(0.5 + 0.5 * np.tanh(0.5 * y))


def check_scores(y: Array, axis: int = -1) -> None:
    """Check that scores say which class is the most likely one.

    Raises:
        InputError: at some position they hold NaN, or infinity.
    """
    if not np.isfinite(y.max(axis=axis)).all():  # the maximum of scores with NaN is NaN
        raise InputError(
            "the scores of the classes hold NaN or infinity: the model diverged, or states overflow here"
        )
