"""A user's samples: the first pass over all of them, and reading each when a batch needs it."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from hashlib import blake2b
from typing import Any, overload

import numpy as np

from mdlstm_tk._util.sizes import format_size
from mdlstm_tk._util.text import counted, listing
from mdlstm_tk.data.images import is_grey
from mdlstm_tk.data.spec import Array, Extents, Floats, RawSample, Resize, Sample, SampleId
from mdlstm_tk.errors import InputError
from mdlstm_tk.io.images import Preprocessing
from mdlstm_tk.kinds import kind_named, training_of

DIGEST_BYTES = 8
MAX_THREADS = 4  # each holds one sample at a time
SMALLEST_SPREAD = 32 * float(np.finfo(np.float32).eps)  # deviation, as a share of the mean


@dataclass(frozen=True)
class Moments:
    """The moments of an image or of an array.

    Attributes:
        count: number of positions.
        total, squares: (C,) float64, the sums of each channel and of its square over them.
        scaled: True if it is an image whose bits are scaled to [0, 1].
        low, high: the smallest and the largest value.
    """

    count: int
    total: Array
    squares: Array
    scaled: bool = False
    low: float = 0.0
    high: float = 1.0

    @classmethod
    def of(cls, x: Floats, scaled: bool = False) -> Moments:
        """Return the moments of x (*grid, C)."""
        values = x.reshape(-1, x.shape[-1])
        squares = np.einsum("pc,pc->c", values, values, dtype=np.float64)
        return cls(
            len(values),
            values.sum(axis=0, dtype=np.float64),
            squares,
            scaled,
            float(x.min()),
            float(x.max()),
        )

    @property
    def channels(self) -> int:
        return len(self.total)


@dataclass(frozen=True)
class Survey:
    """The result of the first pass over a sample.

    Attributes:
        sample: the sample.
        identity: its name, and the digests of its content and its target.
        extents: of its grid, as the network will see it.
        moments: of x, with one channel if the sample is a grey image.
        target: the name of the class, the text, the `RawMask.distinct`, the numbers or labels by name, the
            `Moments` of the target, or None of a kind without targets.
    """

    sample: RawSample
    identity: SampleId
    extents: Extents
    moments: Moments
    target: Any


def survey_samples(
    samples: Sequence[RawSample], kind: str, resize: Resize
) -> tuple[list[Survey], list[str]]:
    """Read all samples once, with a few threads, because decoding images takes most of the time.

    Args:
        samples: the samples.
        kind: name of the kind of the task.
        resize: extents that images are resized to, see `Preprocessing`.

    Returns:
        The survey of each usable sample, and name and reason of each unusable one, in their order.

    Raises:
        MissingExtraError: Pillow is not installed.
    """
    survey = partial(_survey, kind=kind, resize=resize)
    threads = min(MAX_THREADS, os.cpu_count() or 1) if any(sample.is_image for sample in samples) else 1
    with ThreadPoolExecutor(threads) as pool:
        results = list(pool.map(survey, samples))
    return [r for r in results if isinstance(r, Survey)], [r for r in results if isinstance(r, str)]


def channel_moments(
    moments: Sequence[Moments], channels: int
) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Return mean and standard deviation of each channel over all positions. That of a constant channel is
    set to one half, the largest that values in [0, 1] can have."""
    mean, squares, variance = _spread(moments, channels)
    is_constant = variance <= 1e-12 * squares  # what rounding leaves
    std = np.where(is_constant, 0.5, np.sqrt(np.where(is_constant, 1.0, variance)))
    return tuple(map(float, mean)), tuple(map(float, std))


def describe_unresolved(
    array: str, moments: Sequence[Moments], channels: int, are_images: bool
) -> list[str]:
    """A note for the user on the channels of an array that differ from a number by less than float32
    resolves, or not at all. Of images, which may be scaled to [0, 1], only those beyond 1 count."""
    mean, squares, variance = _spread(moments, channels)
    is_unresolved = (squares > are_images) & (variance <= SMALLEST_SPREAD**2 * squares)
    found = np.flatnonzero(is_unresolved).tolist()
    shown = listing([f"channel {k} (about {mean[k]:g})" for k in found])
    text = f"{array} is the same in all training samples as far as float32 resolves it in {shown}"
    return [f"{text}; if it is not constant in the file, subtract that number"] if found else []


def describe_mixed_scales(what: str, surveys: Sequence[Survey], moments: Sequence[Moments]) -> list[str]:
    """A note for the user on images of which some have bits, scaled to [0, 1], and others numbers.

    Args:
        what: the images are.
        surveys: the samples.
        moments: those of the image of each sample.
    """
    unscaled = [s.sample.name for s, each in zip(surveys, moments, strict=True) if not each.scaled]
    if len(unscaled) in (0, len(moments)):
        return []
    return [
        f"{counted(len(unscaled), f'{what} holds', f'{what}s hold')} floats or 32-bit integers, which are "
        f"used as they are, and others 8 or 16 bits, which are scaled to [0, 1]; first '{unscaled[0]}'"
    ]


def _spread(moments: Sequence[Moments], channels: int) -> tuple[Array, Array, Array]:
    """The mean, the mean square and the variance of each channel (C,)."""
    count = sum(each.count for each in moments)
    mean, squares = (
        np.sum([np.broadcast_to(getattr(m, name), channels) for m in moments], axis=0) / count
        for name in ("total", "squares")
    )
    return mean, squares, squares - np.square(mean)


def _survey(sample: RawSample, kind: str, resize: Resize) -> Survey | str:
    """Read a sample; a text says why it cannot be used."""
    training = training_of(kind)
    try:
        x = sample.read_x()
        grid = x.shape[: 2 if sample.is_image else -1]
        moments, extents = _moments(x, sample.is_image, resize)
        if not moments.scaled and (wrong := kind_named(kind).outside_range(x)):
            raise InputError(f"it has {wrong}")
        read = sample.read_y()
        if training.has_grid_targets:
            _check_extents(training.target_name, read.shape[: len(grid)], grid)
        target, label = training.survey(read, lambda y: _moments(y, sample.is_image, resize)[0])
    except InputError as reason:
        return f"{sample.name}: {reason}"
    if sample.is_image and moments.channels == 1:
        x = x.reshape(*grid, -1)[..., 0]  # a grey image that is stored with colours is the same image
    of_target = ""
    if label is not None:
        label = digest_of(label) if isinstance(label, np.ndarray) else str(label)
        of_target = blake2b(label.encode(), digest_size=DIGEST_BYTES).hexdigest()
    return Survey(sample, SampleId(digest_of(x), sample.name, of_target), extents, moments, target)


def digest_of(x: Array) -> str:
    """A text that tells arrays of other values, shapes or dtypes apart."""
    digest = blake2b(f"{x.dtype.str}{x.shape}".encode(), digest_size=DIGEST_BYTES)
    digest.update(np.ascontiguousarray(x).data)
    return digest.hexdigest()


def _moments(pixels: Array, is_image: bool, resize: Resize) -> tuple[Moments, Extents]:
    """Return the moments of an image or of numbers (*grid, C), and its extents, after it is resized."""
    x = Preprocessing(1 if is_grey(pixels) else 3, resize)(pixels) if is_image else pixels
    with np.errstate(invalid="ignore"):  # infinite values are refused below
        moments = Moments.of(x, is_image and pixels.dtype.kind != "f")  # as the preprocessing scales
    if not np.isfinite(moments.squares).all() and not np.isfinite(x).all():
        raise InputError("it contains NaN, infinite values, or numbers too large for float32")
    return moments, x.shape[:-1]


def _check_extents(target: str, extents: Extents, image: Extents) -> None:
    if extents != image:
        raise InputError(f"its {target} is {format_size(extents)}, but the image is {format_size(image)}")


@dataclass
class MemoryBudget:
    """The bytes of further samples that may stay in memory. All splits of a task share one budget."""

    bytes_left: int

    def take(self, count: int) -> bool:
        """Take `count` bytes if there are as many."""
        if count > self.bytes_left:
            return False
        self.bytes_left -= count
        return True


@dataclass
class LazySamples(Sequence[Sample]):
    """Samples that are read again each time, except those for which there is room in memory.

    Training reads the samples in random order, so replacing a sample in memory by another would save no
    reading. Images stay there as they are decoded, with 1 or 2 bytes per value, or as x if that is smaller.

    Args:
        samples: the samples.
        preprocessing: how images become x; None for arrays.
        encode: makes the target from what `RawSample.read_y` returned.
        budget: how much memory the samples may take.
    """

    samples: Sequence[RawSample]
    preprocessing: Preprocessing | None
    encode: Callable[[Any], Any]
    budget: MemoryBudget
    _cache: dict[int, tuple[Any, Any]] = field(default_factory=dict, repr=False)

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
        if index not in self._cache:
            return self._read(index)
        pixels, y = self._cache[index]
        return self._prepared(pixels), y

    def _read(self, index: int) -> tuple[Any, Any]:
        sample = self.samples[index]
        try:
            x, y = sample.read_x(), self.encode(sample.read_y())
            prepared = self._prepared(x)
            if isinstance(y, np.ndarray):  # a mask or numbers, one for each position
                _check_extents("target", y.shape[: prepared.ndim - 1], prepared.shape[:-1])
        except (KeyError, ValueError) as reason:
            raise InputError(
                f"{sample.name} has changed since the start and can no longer be used: {reason}"
            ) from None
        smaller = x if x.nbytes <= prepared.nbytes else prepared
        if sample.is_image and not sample.in_memory and self.budget.take(smaller.nbytes + _count_bytes(y)):
            self._cache[index] = smaller, y
        return prepared, y

    def _prepared(self, x: Array) -> Array:
        """Return x, prepared from decoded pixels unless it is x already: three axes, float32."""
        if self.preprocessing is None or (x.ndim == 3 and x.dtype == np.float32):
            return x
        return self.preprocessing(x)


def _count_bytes(value: Any) -> int:
    return value.nbytes if isinstance(value, np.ndarray) else 100  # a class or a text
