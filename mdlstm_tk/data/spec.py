"""The types that `mdlstm_tk.data` is built on: kinds of tasks, splits, batches, task specifications."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields, replace
from typing import Any, Literal, Self

import numpy as np
import numpy.typing as npt

from mdlstm_tk.errors import InputError
from mdlstm_tk.runtime.preprocessing import Preprocessing
from mdlstm_tk.text import is_plain_text, printable

Array = npt.NDArray[Any]
Floats = npt.NDArray[np.float32]
Kind = Literal["grid", "classify", "segment", "transcribe"]
Split = Literal["train", "validation", "test"]
Sample = tuple[Floats, Any]  # x (*grid, C) and its target, encoded as in `Batch.y`
Metrics = dict[str, tuple[float, float]]  # name → (sum of errors, number of errors summed)

KINDS: tuple[Kind, ...] = ("grid", "classify", "segment", "transcribe")
SPLITS: tuple[Split, ...] = ("train", "validation", "test")
UNLABELLED = -1  # the class of positions that have no label, and of padding


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
            and 0 after the end of the text.
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
            class per position, "transcribe" one text per sample.
        channels: C, features per position of x.
        outputs: outputs of the network: numbers per position, classes, or the blank and the characters.
        size: extents of a sample, or the largest ones if samples differ.
        classes: names of the classes, or the characters.
        mean: mean of each input channel. The network subtracts it; empty if it should not.
        std: standard deviation of each input channel. The network divides by it.
        target_mean: mean of each output of kind "grid"; empty if targets lie in (0, 1).
        target_std: standard deviation of each output of kind "grid"; empty if targets lie in (0, 1).
        base_rate: mean of targets in (0, 1), which an untrained network should predict everywhere.
        mask_values: of kind "segment", the value that each class has in the masks; empty if unknown.
        mask_palette: red, green and blue of each class in turn, if the masks have a palette; else empty.
        preprocessing: how images become x; None if the data are not images.

    Raises:
        InputError: a class is named twice, or its name holds a control character.
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
    base_rate: float | None = None
    mask_values: tuple[int, ...] = ()
    mask_palette: tuple[int, ...] = ()
    preprocessing: Preprocessing | None = None

    def __post_init__(self) -> None:
        what = "character" if self.kind == "transcribe" else "class"
        for name in self.classes:
            if isinstance(name, str) and not is_plain_text(name):
                raise InputError(
                    f"the {what} '{printable(name)}' holds a control character, or one that changes the "
                    "direction of text; rename or replace it in the data"
                )
        if twice := [name for name, count in Counter(self.classes).items() if count > 1]:
            raise InputError(f"there are two classes with the name '{twice[0]}'; rename one of them")

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> TaskSpec:
        """Rebuild a spec from `dataclasses.asdict` of one that went through JSON."""
        arguments: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in values.items()}
        if arguments.get("preprocessing") is not None:
            arguments["preprocessing"] = Preprocessing.from_json(arguments["preprocessing"])
        return cls(**arguments)
