"""The types that `mdlstm_tk.data` is built on: kinds of tasks, splits, batches, task specifications."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, fields, replace
from functools import partial
from math import inf, isfinite
from typing import Any, Literal, NamedTuple, Self, get_args

import numpy as np
import numpy.typing as npt

from mdlstm_tk._util.checks import check_unmasked
from mdlstm_tk._util.text import counted, is_plain_text, printable
from mdlstm_tk._util.text_order import Direction
from mdlstm_tk._util.user_code import not_registered
from mdlstm_tk.errors import InputError
from mdlstm_tk.io.images import Preprocessing
from mdlstm_tk.kinds import kind_named, kind_names, training_of

Array = npt.NDArray[Any]
Floats = npt.NDArray[np.float32]
Extents = tuple[int, ...]
Resize = tuple[int | None, int | None] | None  # see `Preprocessing`
Split = Literal["train", "validation", "test"]
Sample = tuple[Floats, Any]  # x (*grid, C) and its target, encoded as in `Batch.y`
Metrics = dict[str, tuple[float, float]]  # name → (sum of errors, number of errors summed)

SPLITS: tuple[Split, ...] = get_args(Split)
UNLABELLED = -1  # the class of positions that have no label, and of padding


class SampleId(NamedTuple):
    """A sample of the user's data among the samples of a run.

    Attributes:
        digest: of its image or numbers, whatever file they are in: 16 hexadecimal digits.
        name: what it was called.
        target: digest of its target, 16 digits; "" if it has none, or if that is not known.
    """

    digest: str
    name: str
    target: str = ""


@dataclass(frozen=True)
class RawSample:
    """A sample of the user's data, which is read from disk when it is needed.

    Attributes:
        name: name of the sample in messages.
        read_x: returns an image as `decode_image` does, or numbers (*grid, C). Raises `InputError` with the
            reason if the sample cannot be used.
        read_y: returns the target: the name of a class, a text, a `RawMask`, numbers or labels by name, or
            what `read_x` returns. Raises `InputError` as well.
        is_image: `read_x` returns an image, which takes time, so that it is worth keeping in memory.
        whole: name of the file that the sample is one of several parts of, else "".
        in_memory: what `read_x` returns is in memory already.
    """

    name: str
    read_x: Callable[[], Array]
    read_y: Callable[[], Any]
    is_image: bool
    whole: str = ""
    in_memory: bool = False

    @property
    def group(self) -> str:
        """Name of what is not divided among splits: the whole, else the sample itself."""
        return self.whole or self.name

    @classmethod
    def unusable(cls, name: str, reason: str) -> RawSample:
        """Return a sample that cannot be used for a reason."""
        refuse = partial(_refuse, reason)
        return cls(name, refuse, refuse, is_image=True)


def _refuse(reason: str) -> Any:
    raise InputError(reason)


@dataclass(frozen=True)
class Batch:
    """N samples, padded at the far end of each axis where their extents differ.

    Attributes:
        x: (N, *grid, C).
        y: targets, whose shape and dtype depend on the kind of the task; see `TrainingKind.rule`.
        sizes: (N, D) int64, the valid extents; None if every sample fills the grid.

    Raises:
        InputError: one of them is no array, or an array with masked values.
    """

    x: Floats
    y: Array
    sizes: npt.NDArray[np.int64] | None = None

    def __post_init__(self) -> None:
        for name in ("x", "y", "sizes"):
            array = getattr(self, name)
            if array is None and name == "sizes":
                continue
            if not isinstance(array, np.ndarray):
                raise InputError(f"{name} of a batch is of type {type(array).__name__}, expected an array")
            check_unmasked(name, array)
            if not (array.flags.c_contiguous and array.dtype.isnative):  # torch takes some of them only
                array = np.ascontiguousarray(array, array.dtype.newbyteorder("="))
                object.__setattr__(self, name, array)

    def sample(self, k: int) -> Self:
        """Return sample k as a batch of one, with its padding."""
        arrays = {f.name: getattr(self, f.name) for f in fields(self)}
        return replace(self, **{name: a[k : k + 1] for name, a in arrays.items() if a is not None})


@dataclass(frozen=True)
class TaskSpec:
    """The description of a task that a network is built from. Checkpoints store it.

    Attributes:
        name: name of the task.
        kind: kind of the task; see `mdlstm_tk.kinds`.
        channels: C, features per position of x.
        outputs: outputs of the network, such as classes; see `TrainingKind.fit`.
        size: extents of a sample, or the largest ones if samples differ.
        classes: names of the outputs, such as classes; see `Kind.name_count`.
        mean: mean of each input channel. The network subtracts it; empty if it should not.
        std: standard deviation of each input channel. The network divides by it.
        target_mean: mean of each output, if these are numbers; an untrained network predicts it.
        target_std: standard deviation of each output, if these are numbers; empty if targets lie in (0, 1).
        mask_values: the value that each class has in masks; empty if there are none, or they are unknown.
        mask_palette: red, green and blue of each class in turn, if the masks have a palette; else empty.
        preprocessing: how images become x; None if the data are not images.
        text_direction: of kind "transcribe", the direction in which most texts run, see `reorder`.
        threshold: of kind "tag", the probability from which on a sample has a label, in training. The one
            that training chooses in the end is in `decoding.json`.
        x_range: the lowest and the highest value of x in training; None: unknown.
        mixed_sizes: in a checkpoint: the samples differ in extents, or are cropped.

    Raises:
        InputError: a field is out of range, the fields do not agree, or a class is named twice or with a
            control character.
    """

    name: str
    kind: str
    channels: int
    outputs: int
    size: Extents
    classes: tuple[str, ...] = ()
    mean: tuple[float, ...] = ()
    std: tuple[float, ...] = ()
    target_mean: tuple[float, ...] = ()
    target_std: tuple[float, ...] = ()
    mask_values: tuple[int, ...] = ()
    mask_palette: tuple[int, ...] = ()
    preprocessing: Preprocessing | None = None
    text_direction: Direction | None = None
    threshold: float = 0.5
    mixed_sizes: bool = False
    x_range: tuple[float, float] | None = None

    def __post_init__(self) -> None:
        if self.kind not in kind_names():
            raise InputError(not_registered("kind of task", self.kind, kind_names()))
        for name, holds, expected in self._rules():
            if not holds:
                value = printable(repr(getattr(self, name))[:80])
                raise InputError(f"{name} of the task must be {expected}, got {value}")

    def _rules(self) -> Iterator[tuple[str, bool, str]]:
        """Yield each field, if its rule holds, and the value that is expected."""
        yield "channels", self.channels > 0, "a positive number"
        yield "outputs", self.outputs > 0, "a positive number"
        yield "threshold", 0 < self.threshold < 1, "a number between 0 and 1"
        yield "size", len(self.size) > 0 and min(self.size) > 0, "positive extents"
        count = kind_named(self.kind).name_count(self.outputs)
        names = counted(count, "different name")
        yield "classes", len(set(self.classes)) == len(self.classes) == count, names
        are_plain = all(map(is_plain_text, self.classes))
        yield "classes", are_plain, "names without control characters; rename or replace them in the data"
        for mean, std, count in (
            ("mean", "std", self.channels),
            ("target_mean", "target_std", self.outputs),
        ):
            means, deviations = getattr(self, mean), getattr(self, std)
            numbers = counted(count, "number")
            yield mean, len(means) in (0, count) and all(map(isfinite, means)), f"{numbers}, or none"
            is_complete = len(deviations) == len(means) or (mean == "target_mean" and not deviations)
            are_positive = is_complete and all(0 < s < float("inf") for s in deviations)
            yield std, are_positive, f"{counted(len(means), 'number')} above 0"

    def shape_of_prediction(self, batch: Batch) -> tuple[int | None, ...]:
        """Return the shape of a network's prediction for a batch; None where any extent will do.

        Raises:
            InputError: x or y are not what `Batch` says of this kind of task.
        """
        x, y, axes = batch.x, batch.y, len(self.size) + 2
        if x.dtype != np.float32 or x.ndim != axes or x.shape[-1] != self.channels:
            expected = f"float32 with {axes} axes, the last one of {counted(self.channels, 'channel')}"
            raise InputError(f"x of a batch of '{self.name}' is {x.dtype} {x.shape}, expected {expected}")
        kind = training_of(self.kind)
        rule = kind.rule(batch, self)
        holds = np.issubdtype(y.dtype, rule.dtype) and y.shape == rule.shape
        if holds and y.size and (rule.low, rule.high) != (-inf, inf):
            holds = rule.low <= y.min() and y.max() <= rule.high
        if not (holds and kind.keeps_rule(y)):
            values = f" in [{y.min():g}, {y.max():g}]" if y.dtype.kind in "iuf" and y.size else ""
            raise InputError(
                f"y of a batch of '{self.name}' is {y.dtype} {y.shape}{values}, expected "
                f"{rule.dtype.__name__} {rule.shape} in [{rule.low:g}, {rule.high:g}]{rule.note}"
            )
        return rule.prediction

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> TaskSpec:
        """Rebuild a spec from `dataclasses.asdict` of one that went through JSON.

        Raises:
            InputError: a field is missing, unknown, of another type, or out of range.
        """
        try:
            arguments: dict[str, Any] = {
                k: tuple(v) if isinstance(v, list) else v for k, v in values.items()
            }
            if arguments.get("preprocessing") is not None:
                arguments["preprocessing"] = Preprocessing.from_json(arguments["preprocessing"])
            return cls(**arguments)
        except InputError:
            raise
        except (TypeError, ValueError, AttributeError) as error:
            raise InputError(f"it describes no task: {error!s:.200}") from None
