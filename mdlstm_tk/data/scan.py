"""The first pass over a user's samples, and reading each again when a batch needs it."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np

from mdlstm_tk.data.files import Sample
from mdlstm_tk.data.order import digest_of
from mdlstm_tk.data.task import Extents
from mdlstm_tk.errors import InputError
from mdlstm_tk.io import Array
from mdlstm_tk.io.images import Preprocessing

log = logging.getLogger("mdlstm_tk.data")
MAX_THREADS = 4  # each holds one sample at a time
MAX_SHOWN = 10  # samples that cannot be used
RANGE_TOLERANCE = 1e-3  # by which values may lie outside of the range of a kind after rounding


@dataclass(frozen=True)
class Moments:
    """The number of positions of a sample; for each channel (C,) the sums of x and of x² over them; and the
    lowest and the highest value."""

    count: int
    total: Array
    squares: Array
    low: float
    high: float

    @classmethod
    def of(cls, x: Array) -> Moments:
        """The moments of x (*grid, C)."""
        values = x.reshape(-1, x.shape[-1])
        with np.errstate(invalid="ignore"):  # what is not finite is refused
            squares = np.einsum("pc,pc->c", values, values, dtype=np.float64)
            total = values.sum(axis=0, dtype=np.float64)
        return cls(len(values), total, squares, float(x.min()), float(x.max()))


def mean_and_std(moments: Sequence[Moments]) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and deviation of each channel. A constant channel, as far as float32 resolves it, gets the
    deviation 1/2, the largest that values in [0, 1] can have."""
    channels = max(len(each.total) for each in moments)
    count = sum(each.count for each in moments)
    mean, squares = (
        np.sum([np.broadcast_to(getattr(each, name), channels) for each in moments], axis=0) / count
        for name in ("total", "squares")
    )
    variance = squares - np.square(mean)
    constant = variance <= 1e-12 * squares
    if constant.any():
        log.info("channels %s are the same in all training samples", np.flatnonzero(constant).tolist())
    std = np.where(constant, 0.5, np.sqrt(np.where(constant, 1.0, variance)))
    return tuple(mean.tolist()), tuple(std.tolist())


@dataclass(frozen=True)
class Scanned:
    """A sample after the first pass.

    Attributes:
        sample: the sample.
        digest: of its pixels or numbers, whatever file they are in.
        label: digest of its target.
        extents: of its grid, as the network will see it.
        moments: of x, with one channel if it is a grey image.
        summary: of the target, see `Kind.summary`.
        content: what it was read as, if there was room for it.
    """

    sample: Sample
    digest: str
    label: str
    extents: Extents
    moments: Moments
    summary: Any
    content: tuple[Array, Any] | None = None


def scan(
    samples: Sequence[Sample],
    kind: Any,
    prepare: Preprocessing | None,
    room: list[int],
    encode: Callable[[Any], Any] | None = None,
) -> list[Scanned]:
    """Read all samples once. Those that cannot be used are named in the log and left out.

    They come in the order of their contents. So files may be renamed and arrays reordered: the samples of a
    run, and the bytes that it trains to, stay the same.

    Args:
        samples: the samples.
        kind: of the task.
        prepare: how images become x; None of arrays.
        room: bytes that decoded images may take in memory; what they take is subtracted.
        encode: the encoding of targets, if it is known; those that it refuses cannot be used.
    """

    def read(sample: Sample) -> Scanned | str:
        try:
            x, target = sample.read()
            grey = prepare is not None and is_grey(x)
            shown = Preprocessing(1 if grey else 3, prepare.resize)(x) if prepare else x
            moments = Moments.of(shown)
            low, high = kind.x_range or (-np.inf, np.inf)
            if not np.isfinite(moments.squares).all():
                raise InputError("it contains NaN, infinite values, or numbers too large for float32")
            if moments.low < low - RANGE_TOLERANCE or moments.high > high + RANGE_TOLERANCE:
                values = f"{moments.low:g} to {moments.high:g}, expected {low:g} to {high:g}"
                raise InputError(f"it has values from {values}; divide bytes by 255")
            grid, of_target = x.shape[: 2 if prepare else -1], getattr(target, "pixels", target)
            if kind.per_position and of_target.shape[: len(grid)] != grid:
                raise InputError(f"its target is {of_target.shape}, but the grid of x {grid}")
            summary = kind.summary(target)
            if encode is not None:
                encode(target)
        except InputError as reason:
            return f"{sample.name}: {reason}"
        nbytes = x.nbytes + getattr(of_target, "nbytes", 100)
        is_kept = sample.is_image and nbytes <= room[0]
        room[0] -= nbytes * is_kept
        pixels = x[..., 0] if grey and x.ndim == 3 else x  # a grey image with colours is the same image
        digests = digest_of(pixels), digest_of(target)
        return Scanned(
            sample, *digests, shown.shape[:-1], moments, summary, (x, target) if is_kept else None
        )

    threads = min(MAX_THREADS, os.cpu_count() or 1) if prepare else 1
    with ThreadPoolExecutor(threads) as pool:
        results = list(pool.map(read, samples))
    if reasons := [result for result in results if isinstance(result, str)]:
        shown = "; ".join(reasons[:MAX_SHOWN])
        log.warning("samples that cannot be used, left out: %d (%s)", len(reasons), shown)
    found = [result for result in results if isinstance(result, Scanned)]
    return sorted(found, key=lambda each: (each.digest, each.label))


def is_grey(pixels: Array) -> bool:
    """True for pixels (H, W), and for (H, W, 3) that are grey everywhere."""
    return pixels.ndim == 2 or bool((pixels == pixels[..., :1]).all())


class Samples(Sequence[Any]):
    """The samples of a split as `Dataset` takes them. Those that `scan` has not kept are read each time.

    Args:
        scanned: the samples.
        prepare: how images become x; None of arrays.
        encode: makes what `Kind.collate` takes of the target that was read; None: as it is.
    """

    def __init__(
        self,
        scanned: Sequence[Scanned],
        prepare: Preprocessing | None,
        encode: Callable[[Any], Any] | None,
    ) -> None:
        self.prepare, self.encode = prepare, encode
        self.samples = [each.sample for each in scanned]
        self._kept = {k: each.content for k, each in enumerate(scanned) if each.content is not None}

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, index: Any) -> Any:
        index = range(len(self.samples))[index]
        try:
            x, target = self._kept.get(index) or self.samples[index].read()
            y = target if self.encode is None else self.encode(target)
        except (InputError, KeyError, ValueError) as reason:
            name = self.samples[index].name
            raise InputError(f"{name} has changed since training began: {reason}") from None
        return self.prepare(x) if self.prepare else x, y
