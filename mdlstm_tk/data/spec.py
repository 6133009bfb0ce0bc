"""The types that `mdlstm_tk.data` is built on: kinds of tasks, splits, batches, task specifications."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Container, Mapping
from dataclasses import dataclass, fields, replace
from math import prod
from typing import Any, Literal, Self

import numpy as np
import numpy.typing as npt

from mdlstm_tk._util.regular_files import is_unicode
from mdlstm_tk._util.text import is_plain_text, printable
from mdlstm_tk.errors import InputError
from mdlstm_tk.runtime.preprocessing import Preprocessing

Array = npt.NDArray[Any]
Floats = npt.NDArray[np.float32]
Kind = Literal["grid", "classify", "segment", "transcribe", "density"]
Split = Literal["train", "validation", "test"]
Sample = tuple[Floats, Any]  # x (*grid, C) and its target, encoded as in `Batch.y`
Metrics = dict[str, tuple[float, float]]  # name → (sum of errors, number of errors summed)

KINDS: tuple[Kind, ...] = ("grid", "classify", "segment", "transcribe", "density")
SPLITS: tuple[Split, ...] = ("train", "validation", "test")
UNLABELLED = -1  # the class of positions that have no label, and of padding

# limits of a task's description
MAX_CHANNELS = 2**16
MAX_OUTPUTS = 2**20
MAX_POSITIONS = 2**28  # of a sample
MAX_NAME = 10_000  # characters
MAX_MASK_VALUE = 2**63 - 1
FLOAT32_MAX = 3e38  # approximately


class UnusableSampleError(Exception):
    """A sample cannot be used; the message is the reason."""


@dataclass(frozen=True)
class RawSample:
    """A sample of the user's data, which is read from disk when it is needed.

    Attributes:
        name: name of the sample in messages.
        read_x: returns an image as `decode_image` does, or numbers (H, W, C). Raises `UnusableSampleError`.
        read_y: returns the target: the name of a class, a text, a `RawMask`, or what `read_x` returns.
            Raises `UnusableSampleError`.
        is_file: reading takes time, so that it is worth keeping what was read.
    """

    name: str
    read_x: Callable[[], Array]
    read_y: Callable[[], Any]
    is_file: bool


@dataclass(frozen=True)
class Batch:
    """N samples, padded at the far end of each axis where their extents differ.

    Attributes:
        x: (N, *grid, C).
        y: targets. "grid": (N, *grid, outputs) float32. "classify": (N,) int64. "segment": (N, *grid)
            int64, UNLABELLED where there is no class. "transcribe": (N, L) int64, k + 1 for character k
            and 0 after the end of the text. "density": x itself.
        sizes: (N, D) int64, the valid extents; None if every sample fills the grid.
    """

    x: Floats
    y: Array
    sizes: npt.NDArray[np.int64] | None = None

    def sample(self, k: int) -> Self:
        """Return sample k as a batch of one, with its padding."""
        arrays = {f.name: getattr(self, f.name) for f in fields(self)}
        return replace(self, **{name: a[k : k + 1] for name, a in arrays.items() if a is not None})


@dataclass(frozen=True)
class TaskSpec:
    """The description of a task that a network is built from. Checkpoints store it.

    Attributes:
        name: name of the task.
        kind: "grid" predicts numbers at every position, "classify" one class per sample, "segment" one
            class per position, "transcribe" one text per sample, "density" the probability of x.
        channels: C, features per position of x.
        outputs: outputs of the network: numbers per position, classes, or the blank and the characters; of
            kind "density" the levels of each channel, or 1 for two levels.
        size: extents of a sample, or the largest ones if samples differ.
        classes: names of the classes, or the characters.
        mean: mean of each input channel. The network subtracts it; empty if it should not.
        std: standard deviation of each input channel. The network divides by it.
        target_mean: mean of each output of kind "grid", which an untrained network predicts everywhere.
        target_std: standard deviation of each output of kind "grid"; empty if targets lie in (0, 1).
        mask_values: of kind "segment", the value that each class has in the masks; empty if unknown.
        mask_palette: red, green and blue of each class in turn, if the masks have a palette; else empty.
        preprocessing: how images become x; None if the data are not images.

    Raises:
        InputError: a field has another type or is out of range, the fields do not agree, a class is named
            twice, or its name holds a control character.
    """

    name: str
    kind: Kind
    channels: int
    outputs: int
    size: tuple[int, ...]
    classes: tuple[str, ...] = ()
    mean: tuple[float, ...] = ()
    std: tuple[float, ...] = ()
    target_mean: tuple[float, ...] = ()
    target_std: tuple[float, ...] = ()
    mask_values: tuple[int, ...] = ()
    mask_palette: tuple[int, ...] = ()
    preprocessing: Preprocessing | None = None

    def __post_init__(self) -> None:
        self._require("name", _is_text(self.name), f"at most {MAX_NAME} characters of Unicode")
        self._require("kind", self.kind in list(KINDS), f"one of {', '.join(KINDS)}")
        for name, limit in (("channels", MAX_CHANNELS), ("outputs", MAX_OUTPUTS)):
            self._require(name, _is_int(getattr(self, name), 1, limit), f"a whole number from 1 to {limit}")
        is_size = _are(self.size, range(1, 9), _is_extent) and prod(self.size) <= MAX_POSITIONS
        self._require("size", is_size, f"extents from 1, of at most {MAX_POSITIONS} positions together")
        self._require(
            "classes",
            _are(self.classes, [self._class_count], _is_text),
            f"{self._class_count} texts of at most {MAX_NAME} characters, as outputs is {self.outputs}",
        )
        self._check_class_names()
        self._check_moments("mean", "std", self.channels)
        self._check_moments("target_mean", "target_std", self.outputs)
        counts = [0, len(self.classes)] if self.kind == "segment" else [0]
        are_values = _are(self.mask_values, counts, lambda value: _is_int(value, 0, MAX_MASK_VALUE))
        are_values = are_values and len(set(self.mask_values)) == len(self.mask_values)
        self._require("mask_values", are_values, "a whole number for each class of masks, all different")
        counts = [0, 3 * len(self.mask_values)]
        are_colours = _are(self.mask_palette, counts, lambda value: _is_int(value, 0, 255))
        self._require("mask_palette", are_colours, "3 numbers from 0 to 255 for each of mask_values")
        fits = self.preprocessing is None or self.preprocessing.channels == self.channels
        self._require("preprocessing", fits, f"for {self.channels} channels")

    @property
    def _class_count(self) -> int:
        """The number of classes or characters that `outputs` outputs stand for."""
        if self.kind in ("grid", "density"):
            return 0
        return self.outputs - 1 if self.kind == "transcribe" else self.outputs

    def _check_class_names(self) -> None:
        what = "character" if self.kind == "transcribe" else "class"
        for name in self.classes:
            if not is_plain_text(name):
                raise InputError(
                    f"the {what} '{printable(name)}' holds a control character, or one that changes the "
                    "direction of text; rename or replace it in the data"
                )
        if twice := [name for name, count in Counter(self.classes).items() if count > 1]:
            raise InputError(f"there are two classes with the name '{twice[0]}'; rename one of them")

    def _check_moments(self, mean: str, std: str, count: int) -> None:
        """Check mean and standard deviation of `count` channels; both, or that of targets, may be empty."""
        means, deviations = getattr(self, mean), getattr(self, std)
        self._require(mean, _are(means, [0, count], _is_finite), f"{count} numbers, or none")
        counts = [len(means), 0] if mean == "target_mean" else [len(means)]
        are_deviations = _are(deviations, counts, lambda value: _is_finite(value) and value > 0)
        self._require(std, are_deviations, f"{len(means)} numbers above 0")

    def _require(self, name: str, holds: bool, expected: str) -> None:
        if not holds:
            raise InputError(f"{name} of the task must be {expected}, got {getattr(self, name)!r:.80}")

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> TaskSpec:
        """Rebuild a spec from `dataclasses.asdict` of one that went through JSON; it may be untrusted.

        Raises:
            InputError: a field is missing, unknown, of another type, or out of range.
        """
        arguments: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in values.items()}
        try:
            if arguments.get("preprocessing") is not None:
                arguments["preprocessing"] = Preprocessing.from_json(arguments["preprocessing"])
            return cls(**arguments)
        except InputError:
            raise
        except (TypeError, ValueError, AttributeError) as error:
            raise InputError(f"it describes no task: {error!s:.200}") from None


def _is_int(value: Any, least: int, most: int) -> bool:
    return type(value) is int and least <= value <= most


def _is_finite(value: Any) -> bool:
    return type(value) in (int, float) and abs(value) <= FLOAT32_MAX


def _is_extent(value: Any) -> bool:
    return _is_int(value, 1, MAX_POSITIONS)


def _is_text(value: Any) -> bool:
    return isinstance(value, str) and len(value) <= MAX_NAME and is_unicode(value)


def _are(values: Any, counts: Container[int], accepts: Callable[[Any], bool]) -> bool:
    """Whether values are a tuple of one of these lengths, and each is accepted."""
    return isinstance(values, tuple) and len(values) in counts and all(map(accepts, values))
