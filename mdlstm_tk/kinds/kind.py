"""The questions that exports and inference ask a kind of task. Nothing here imports torch."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from mdlstm_tk.errors import InputError
from mdlstm_tk.io import Array
from mdlstm_tk.io.metadata import Metadata

if TYPE_CHECKING:
    from mdlstm_tk.kinds.training_kind import TrainingKind

Row = dict[str, Any]
"""The answer for a sample: JSON values by the names of their columns. Lists are in json alone."""
RANGE_TOLERANCE = 1e-3  # by which values may lie outside of the range of a kind after rounding
PROBABILITY_DIGITS = 6


class Kind:
    """A kind of task. A class of its own answers the questions that differ from these answers, which are
    those of numbers at every position.

    Attributes:
        name: in metadata, configurations and on the command line.
        training_module: the module whose TRAINING answers what training asks.
        networks_of: another kind whose networks this one takes, too.
        gives_rows: `decode` returns a row for each sample, rather than an array.
        image_format: file format of the answers for images, if they are arrays; "tif" stands for "png" in
            tiles.
        table: name of the file that holds the targets of images in training data, which is no input; "" if
            there is none.
        target_folder: name of the folder that holds them beside images/, whose files are no inputs; "" if
            there is none.
        run_files: names of files in the folder of a run that belong to its weights.
        sample_axes: number of axes of the output for one sample; None: those of the grid and one more.
        axes: of an output without a grid, in words.
        reads_lines: x is an image of one line, and the steps of an output (N, T, outputs) count as its
            columns.
        x_range: the lowest and the highest value of x; None: any numbers.
    """

    name: ClassVar[str]
    training_module: ClassVar[str]
    networks_of: ClassVar[str | None] = None
    gives_rows: ClassVar[bool] = False
    image_format: ClassVar[str] = "npy"
    table: ClassVar[str] = ""
    target_folder: ClassVar[str] = ""
    run_files: ClassVar[tuple[str, ...]] = ()
    sample_axes: ClassVar[int | None] = None
    axes: ClassVar[str] = "N, …"
    reads_lines: ClassVar[bool] = False
    x_range: ClassVar[tuple[float, float] | None] = None

    @property
    def training(self) -> TrainingKind:
        """The half that training asks, which is imported when it is used."""
        training: TrainingKind = import_module(self.training_module).TRAINING
        return training

    def name_count(self, outputs: int) -> int:
        """The number of names of classes or characters that so many outputs have; 0 if they have none."""
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
            A row for each sample if the kind `gives_rows`, else an array (N, …).

        Raises:
            InputError: an option does not suit the model.
        """
        return y

    def outside_range(self, x: Array) -> str:
        """Say which numbers of x lie outside of `x_range`; "" if none do."""
        if self.x_range is None or not x.size:
            return ""
        (lowest, highest), low, high = self.x_range, float(x.min()), float(x.max())
        if low >= lowest - RANGE_TOLERANCE and high <= highest + RANGE_TOLERANCE:
            return ""
        hint = "; divide them by the highest that they can have, such as 255" if low >= 0 else ""
        return f"values from {low:g} to {high:g}; kind {self.name} expects [{lowest:g}, {highest:g}]{hint}"


class Grid(Kind):
    """The kind `grid`: numbers at every position."""

    name = "grid"
    training_module = "mdlstm_tk.kinds.grid_training"
    target_folder = "targets"


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
        raise InputError("the scores of the classes hold NaN or infinity; the model diverged")


KIND, NO_KIND = Grid(), Kind()  # that of a model that names no kind, or one that nobody has registered
