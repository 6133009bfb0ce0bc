"""Samples that are read from disk when they are needed, and a bound on how many stay in memory."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, NamedTuple, overload

import numpy as np

from mdlstm_tk.data.images import Extents
from mdlstm_tk.data.masks import MaskClasses
from mdlstm_tk.data.spec import RawSample, Sample, UnusableSampleError
from mdlstm_tk.errors import InputError
from mdlstm_tk.runtime.preprocessing import Preprocessing


@dataclass
class MemoryBudget:
    """How many more bytes of samples may be kept. All splits of a task share one."""

    bytes_left: int

    def take(self, count: int) -> bool:
        """Take `count` bytes if there are as many."""
        if count > self.bytes_left:
            return False
        self.bytes_left -= count
        return True


class Conversion(NamedTuple):
    """How what was read becomes x or a target of the task, in two steps.

    Attributes:
        first: what comes before the cache. Its result should be small.
        second: what comes after the cache.
    """

    first: Callable[[Any], Any]
    second: Callable[[Any], Any]


def unchanged(value: Any) -> Any:
    """Return the value."""
    return value


def image_conversion(preprocessing: Preprocessing) -> Conversion:
    """Images are kept as they are decoded, with 1 or 2 bytes per value, unless they are resized."""
    return Conversion(*((preprocessing, unchanged) if preprocessing.resize else (unchanged, preprocessing)))


def mask_conversion(classes: MaskClasses, resize: Extents | None) -> Conversion:
    """Masks are kept as the indices of their classes."""
    return Conversion(partial(classes.encode, extents=resize), unchanged)


@dataclass
class LazySamples(Sequence[Sample]):
    """Samples that are read again each time, except those for which there is room in memory.

    Training reads the samples in random order. What is kept is therefore kept for good: replacing it would
    only lead to more reading.

    Args:
        samples: the samples.
        convert_x: how x is made of what was read.
        convert_y: how the target is made of what was read.
        budget: how much may be kept.
    """

    samples: Sequence[RawSample]
    convert_x: Conversion
    convert_y: Conversion
    budget: MemoryBudget
    _kept: dict[int, tuple[Any, Any]] = field(default_factory=dict, repr=False)

    def __len__(self) -> int:
        return len(self.samples)

    @overload
    def __getitem__(self, index: int) -> Sample: ...
    @overload
    def __getitem__(self, index: slice) -> list[Sample]: ...
    def __getitem__(self, index: int | slice) -> Sample | list[Sample]:
        """Read one sample or several.

        Raises:
            InputError: the file of a sample was changed or deleted in the meantime.
        """
        if isinstance(index, slice):
            return [self[k] for k in range(len(self.samples))[index]]
        index = range(len(self.samples))[index]
        x, y = self._kept.get(index) or self._read(index)
        return self.convert_x.second(x), self.convert_y.second(y)

    def _read(self, index: int) -> tuple[Any, Any]:
        sample = self.samples[index]
        try:
            pair = self.convert_x.first(sample.read_x()), self.convert_y.first(sample.read_y())
        except UnusableSampleError as reason:
            raise InputError(
                f"--data: {sample.name} has changed since the start and can no longer be used: {reason}"
            ) from None
        if sample.is_file and self.budget.take(sum(map(_count_bytes, pair))):
            self._kept[index] = pair
        return pair


def _count_bytes(value: Any) -> int:
    return value.nbytes if isinstance(value, np.ndarray) else 100  # a name or a text
