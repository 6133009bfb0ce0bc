"""The questions that exports and inference ask a kind of task. Nothing here imports torch."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from mdlstm_tk.runtime.io import Format

if TYPE_CHECKING:
    from mdlstm_tk.kinds.answer import Answer
    from mdlstm_tk.kinds.documents import Documents
    from mdlstm_tk.kinds.options import Option
    from mdlstm_tk.kinds.training_kind import TrainingKind
    from mdlstm_tk.runtime.io.npy import Array
    from mdlstm_tk.runtime.jobs import ResultOptions
    from mdlstm_tk.runtime.metadata import Metadata
    from mdlstm_tk.runtime.session import Session
    from mdlstm_tk.runtime.tiles.session import TiledSession

OpenModel = Callable[[Path], "Session | TiledSession"]
Width = tuple[float, float]
"""Pixels that the columns of an output cover, the last one perhaps beyond the end of the image, and those
of the image."""
LINES: tuple[Format, ...] = ("txt", "tsv", "csv", "json")
ARRAYS: tuple[Format, ...] = ("npy", "npz")
RANGE_TOLERANCE = 1e-3  # by which values may lie outside of the range of a kind after rounding


class Kind:
    """A kind of task. A class of its own answers the questions that differ from these answers, which are
    those of numbers at every position.

    Attributes:
        name: in metadata, configurations and on the command line.
        training_module: the module whose TRAINING answers what training asks.
        networks_of: another kind whose networks this one takes, too.
        answers: what `formats` hold, in words; "" if there are only numbers.
        formats: those for answers. All kinds write numbers, too.
        probabilities: the formats in which the option `probabilities` shows, if the kind takes it.
        options: further options of `infer_paths` that the kind takes.
        documents: the documents that its models read; None if all files hold samples.
        table: name of the file that holds the targets of images in training data, which is no input; "" if
            there is none.
        target_folder: name of the folder that holds them beside images/; "" if there is none.
        run_files: names of files in the folder of a run that belong to its weights.
        metadata_class: the class for the metadata of its models, or its place, see `rooms.load`.
        is_printed: answers go to standard output, and one file may hold those for several inputs.
        image_format, tile_format: of the answers for images, and of tiled models, where it is not that of
            numbers. What tiled models with a grid answer at a position depends on the output there alone.
        sample_axes: the number of axes of the output for one sample; None if they are those of the grid and
            one more.
        axes: of an output without a grid, in words.
        steps_are_columns: the steps of an output (N, T, outputs) count as columns of x.
        counts_positions: answers depend on the extents of a sample, which padded outputs do not tell.
        x_range: the lowest and the highest value of x, also in files of numbers; None: any numbers.
    """

    name: ClassVar[str]
    training_module: ClassVar[str]
    networks_of: ClassVar[str | None] = None
    answers: ClassVar[str] = ""
    formats: ClassVar[tuple[Format, ...]] = ()
    probabilities: ClassVar[tuple[Format, ...]] = ()
    options: ClassVar[tuple[Option, ...]] = ()
    documents: ClassVar[Documents | None] = None
    table: ClassVar[str] = ""
    target_folder: ClassVar[str] = ""
    run_files: ClassVar[tuple[str, ...]] = ()
    metadata_class: ClassVar[str | type[Metadata]] = "runtime.metadata:Metadata"
    is_printed: ClassVar[bool] = False
    image_format: ClassVar[Format | None] = None
    tile_format: ClassVar[Format | None] = None
    sample_axes: ClassVar[int | None] = None
    axes: ClassVar[str] = "N, …"
    steps_are_columns: ClassVar[bool] = False
    counts_positions: ClassVar[bool] = False
    x_range: ClassVar[tuple[float, float] | None] = None

    @property
    def training(self) -> TrainingKind:
        """The half that training asks, which is imported when it is used."""
        training: TrainingKind = import_module(self.training_module).TRAINING
        return training

    @property
    def takes(self) -> dict[str, tuple[Format, ...]]:
        """The formats in which each option that the kind takes shows, by its name."""
        own = {"probabilities": self.probabilities} if self.probabilities else {}
        return own | {option.name: option.formats for option in self.options}

    def name_count(self, outputs: int) -> int:
        """The number of names of classes or characters that so many outputs have; 0 if they have none."""
        return 0

    def rules(self, metadata: Metadata) -> Iterator[tuple[str, bool, str]]:
        """Rules between the fields of metadata: a field, if the rule holds, and what was expected."""
        yield from ()

    def fits(self, y: Array, metadata: Metadata) -> bool:
        """True if an output, with or without a batch axis, has the shape that `decode` takes."""
        from mdlstm_tk.runtime.postprocessing import class_axis

        axes = self._sample_axes(metadata)
        is_fitting = y.ndim in (axes, axes + 1) and y.shape[class_axis(y, metadata)] == metadata.outputs
        return is_fitting and y.size > 0

    def outside_range(self, x: Array) -> str:
        """Say which numbers x, of training or of inference, lie outside of `x_range`, and what is expected;
        "" if none do."""
        if self.x_range is None or not x.size:
            return ""
        (lowest, highest), low, high = self.x_range, float(x.min()), float(x.max())
        if not (low < lowest - RANGE_TOLERANCE or high > highest + RANGE_TOLERANCE):
            return ""
        hint = "; divide them by the highest that they can have, such as 255" if low >= 0 else ""
        return (
            f"values from {low:g} to {high:g}; a model of kind {self.name} expects them in "
            f"[{lowest:g}, {highest:g}]{hint}"
        )

    def has_documents_in_images(self, options: Mapping[str, Any]) -> bool:
        """True if its models read images as documents, too.

        Args:
            options: those of the kind that are given, by name.
        """
        return False

    def prepare(
        self, options: ResultOptions, metadata: Metadata, open_model: OpenModel | None = None
    ) -> ResultOptions:
        """The options as `decode` takes them: checked against the model, with files that they name loaded.

        Args:
            options: of the answers.
            metadata: of the model.
            open_model: opens a further model as the first one: on its device, and within its limits. It is
                closed after the last result. None: the answers of one output are asked for.

        Raises:
            InputError: they do not fit each other or the model, or a file cannot be used.
        """
        return options

    def decode(
        self, y: Array, metadata: Metadata, array: str | None, options: ResultOptions, width: Width | None
    ) -> Sequence[Answer] | Array:
        """The answers of a model.

        Args:
            y: its output, with or without a batch axis; in tiles, a part of its grid alone.
            metadata: of the model.
            array: name of the array, which the answers repeat.
            options: of the answers.
            width: pixels that the columns of y cover, and those of the image, if they are known.

        Returns:
            An answer for each sample; or an array, if answers are no lines of text.

        Raises:
            MDLSTMError: y has another shape than the metadata say.
            InputError: y holds NaN or infinity where it should give one answer.
        """
        return y

    def each_sample(self, y: Array, metadata: Metadata) -> list[tuple[int | None, Array]]:
        """The index and the output of each sample, for `decode`; the index of one without a batch axis is
        None."""
        return list(enumerate(y)) if y.ndim > self._sample_axes(metadata) else [(None, y)]

    def scores_to_probabilities(self, y: Array, axis: int) -> Array:
        """The probabilities of classes, from the scores that a network returns, in the same shape.

        Args:
            y: scores.
            axis: of the classes.
        """
        from mdlstm_tk.runtime.postprocessing import probabilities

        return probabilities(y, axis)

    def blank(self, metadata: Metadata, options: ResultOptions) -> Answer:
        """An answer with the columns of all answers."""
        import numpy as np

        shape = (*(1,) * self._sample_axes(metadata), metadata.outputs)  # of a batch of one
        return self.decode(np.zeros(shape, np.float32), metadata, None, options, None)[0]

    def _sample_axes(self, metadata: Metadata) -> int:
        return self.sample_axes or metadata.ndim + 1


KIND = Kind()  # of a model that says no kind
