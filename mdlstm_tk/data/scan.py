"""The first pass over a data set: every sample is read once, to know its extents and what occurs in it."""

from __future__ import annotations

import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np

from mdlstm_tk.data.images import Extents, check_extents, is_grey
from mdlstm_tk.data.masks import MaskScan
from mdlstm_tk.data.spec import Array, Floats, Kind, RawSample, UnusableSampleError
from mdlstm_tk.runtime.preprocessing import Preprocessing

MAX_THREADS = 4  # each holds one sample at a time


@dataclass(frozen=True)
class Moments:
    """Number of positions, and the sums of each channel and of its square over them; (C,) float64."""

    count: int
    total: Array
    squares: Array

    @classmethod
    def of(cls, x: Floats) -> Moments:
        """The moments of x (H, W, C)."""
        squares = np.einsum("hwc,hwc->c", x, x, dtype=np.float64)
        return cls(x[..., 0].size, x.sum(axis=(0, 1), dtype=np.float64), squares)

    @property
    def channels(self) -> int:
        return len(self.total)


@dataclass(frozen=True)
class Scan:
    """What the first pass learns about a sample.

    Attributes:
        extents: (H, W) as the network will see it.
        moments: of x, with one channel if the sample is a grey image.
        target: the name of the class, the text, a `MaskScan`, or the `Moments` of the target.
    """

    extents: Extents
    moments: Moments
    target: Any


def scan_samples(
    samples: Sequence[RawSample], kind: Kind, resize: Extents | None
) -> list[Scan | UnusableSampleError]:
    """Read all samples once, with a few threads, because decoding images takes most of the time.

    Args:
        samples: the samples.
        kind: kind of the task.
        resize: extents that images are resized to.

    Returns:
        What was learned about each sample, or why it cannot be used, in the order of the samples.

    Raises:
        MissingExtraError: Pillow is not installed.
    """
    scan = partial(_scan, kind=kind, resize=resize)
    threads = min(MAX_THREADS, os.cpu_count() or 1)
    if threads == 1 or not any(sample.is_file for sample in samples):
        return list(map(scan, samples))
    with ThreadPoolExecutor(threads) as pool:
        return list(pool.map(scan, samples))


def channel_moments(
    moments: Sequence[Moments], channels: int
) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and standard deviation of each channel over all positions; std 1 where it is constant."""
    count = sum(each.count for each in moments)
    mean, squares = (
        np.sum([np.broadcast_to(getattr(m, name), channels) for m in moments], axis=0) / count
        for name in ("total", "squares")
    )
    variance = squares - np.square(mean)
    is_constant = variance <= 1e-12 * squares  # what rounding leaves
    std = np.where(is_constant, 1.0, np.sqrt(np.where(is_constant, 1.0, variance)))
    return tuple(map(float, mean)), tuple(map(float, std))


def _scan(sample: RawSample, kind: Kind, resize: Extents | None) -> Scan | UnusableSampleError:
    try:
        pixels = sample.read_x()
        moments, extents = _moments(pixels, sample.is_file, resize)
        target = sample.read_y()
        if kind == "segment":
            check_extents("mask", target.pixels.shape[:2], pixels.shape[:2])
            target = MaskScan.of(target)
        elif kind == "grid":
            check_extents("target", target.shape[:2], pixels.shape[:2])
            target, _ = _moments(target, sample.is_file, resize)
        elif kind == "density" and pixels.dtype.kind == "f":  # integers are scaled to [0, 1]
            low, high = pixels.min(), pixels.max()
            if not 0 <= low <= high <= 1:
                raise UnusableSampleError(f"its values lie in [{low:g}, {high:g}], expected [0, 1]")
    except UnusableSampleError as reason:
        return reason
    return Scan(extents, moments, target)


def _moments(pixels: Array, is_image: bool, resize: Extents | None) -> tuple[Moments, Extents]:
    """The moments of an image or of numbers (H, W, C), and its extents, after it is resized."""
    x = Preprocessing(1 if is_grey(pixels) else 3, resize)(pixels) if is_image else pixels
    moments = Moments.of(x)
    if not np.isfinite(moments.squares).all() and not np.isfinite(x).all():
        raise UnusableSampleError(
            "it contains NaN, infinity, or values that float32 cannot hold, above 3.4e38"
        )
    height, width, _ = x.shape
    return moments, (height, width)
