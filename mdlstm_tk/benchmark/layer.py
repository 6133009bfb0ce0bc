"""How fast a sweep is, as a ratio to what it cannot do without: its matrix products.

The *floor* of a shape is those products through torch and nothing else: forward one
(N·P, C) × (C, G·n), and one (rows, D·n) × (D·n, G·n) a wavefront into a reused buffer; backward one
(rows, G·n) × (G·n, D·n) a wavefront, and the two that give the weights' gradients. Contenders are
timed in turn within one process, so that whatever else the machine does hits all alike.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from math import prod
from statistics import median
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mdlstm_tk.errors import InputError
from mdlstm_tk.layer import MDLSTM
from mdlstm_tk.sizes import format_size, parse_size
from mdlstm_tk.wavefront import wavefronts

Run = Callable[[], object]


@dataclass(frozen=True)
class Shape:
    """What is measured: N samples of `grid` cells with C features, n units.

    Attributes:
        batch: N.
        grid: extents.
        channels: C.
        units: n.
        options: further arguments of `MDLSTM`.
    """

    batch: int
    grid: tuple[int, ...]
    channels: int
    units: int
    options: tuple[tuple[str, Any], ...] = ()

    @classmethod
    def parse(cls, text: str) -> Shape:
        """From "16,32x32,1,64".

        Raises:
            InputError: it is not N,GRID,C,n.
        """
        batch, grid, channels, units = [*text.split(","), "", "", "", ""][:4]
        if text.count(",") != 3 or not all(part.strip().isdecimal() for part in (batch, channels, units)):
            raise InputError(f"a shape is N,GRID,C,n such as 16,32x32,1,64, got '{text}'")
        ndim = max(2, grid.count("x") + 1)
        shape = cls(int(batch), parse_size(grid.strip(), ndim), int(channels), int(units))
        if min(shape.batch, shape.channels, shape.units) < 1:
            raise InputError(f"N, C and n of a shape must be at least 1, got '{text}'")
        return shape

    def __str__(self) -> str:
        extras = "".join(f", {name}={value}" for name, value in self.options)
        return f"{self.batch}, {format_size(self.grid)}, {self.channels}, {self.units}{extras}"

    @property
    def dirs(self) -> int:
        return 2 ** len(self.grid) if dict(self.options).get("directions") == "all" else 1

    @property
    def width(self) -> int:
        """G·n."""
        return (3 + len(self.grid)) * self.units

    @property
    def rows(self) -> int:
        """Cells of all samples."""
        return self.batch * prod(self.grid)

    @property
    def wavefronts(self) -> int:
        return sum(self.grid) - len(self.grid) + 1

    def flops(self, training: bool) -> int:
        """Floating-point operations of the products; training has three times as many."""
        forward = 2 * self.dirs * self.rows * (self.channels + len(self.grid) * self.units) * self.width
        return forward * (3 if training else 1)

    def lstm_flops(self, training: bool) -> int:
        """Those of `torch.nn.LSTM` over as many cells."""
        forward = 2 * self.dirs * self.rows * (self.channels + self.units) * 4 * self.units
        return forward * (3 if training else 1)


SHAPES = (
    Shape(16, (8, 8), 1, 16),
    Shape(16, (32, 32), 1, 64),
    Shape(4, (64, 64), 16, 32),
    Shape(1, (128, 128), 1, 32),
    Shape(1, (16, 16, 16), 1, 32),
    Shape(16, (32, 32), 1, 64, (("directions", "all"),)),
    Shape(16, (32, 32), 1, 64, (("layer_norm", True),)),
    Shape(16, (32, 32), 1, 64, (("recompute", True),)),
    Shape(1, (32, 32), 1, 32),
    Shape(1, (32, 32), 1, 32, (("directions", "all"),)),
    Shape(1, (512, 512), 1, 32),
)


@dataclass(frozen=True)
class Measurement:
    """What the layer needs for one call. Times are medians; ratios are medians of those of each round.

    Attributes:
        shape: what was measured.
        training: with backward, or forward alone.
        device: "cpu", or the name of the GPU.
        threads: that torch is allowed.
        backend: that ran.
        seconds: of one call.
        gflops: billions of floating-point operations in its products, a second.
        to_floor: ratio to the floor's time.
        to_lstm: ratio to the time of `torch.nn.LSTM` over as many cells, whose sequences are as long as
            the grid's wavefronts are many.
        to_lstm_per_flop: the same, each time divided by the operations in its products.
        to_unrolled: ratio to the time of the backend "unrolled".
        peak_bytes: of tensors at most, beside those there were before.
        wavefronts: steps in a sweep.
    """

    shape: str
    training: bool
    device: str
    threads: int
    backend: str
    seconds: float
    gflops: float
    to_floor: float
    to_lstm: float
    to_lstm_per_flop: float
    to_unrolled: float
    peak_bytes: int
    wavefronts: int


def measure(
    shape: Shape,
    training: bool,
    seconds: float = 2.0,
    threads: int = 1,
    device: str = "cpu",
    dtype: torch.dtype = torch.float32,
) -> Measurement:
    """The layer beside the floor, `nn.LSTM` and "unrolled", for `seconds`."""
    runs, layer, x = contenders(shape, training, device, dtype)
    with torch_threads(threads):
        times = interleave(runs, seconds, torch.device(device))
        peak_bytes = _peak_bytes(runs["layer"], torch.device(device))
    ratios = ratios_of(times, "layer")
    flops = shape.flops(training)
    middle = median(times["layer"])
    return Measurement(
        shape=str(shape),
        training=training,
        device=torch.cuda.get_device_name(device) if device != "cpu" else "cpu",
        threads=threads,
        backend=layer.backend_for(x).name,
        seconds=middle,
        gflops=flops / middle / 1e9,
        to_floor=ratios["floor"],
        to_lstm=ratios["nn.LSTM"],
        to_lstm_per_flop=ratios["nn.LSTM"] * shape.lstm_flops(training) / flops,
        to_unrolled=ratios["unrolled"],
        peak_bytes=peak_bytes,
        wavefronts=shape.wavefronts,
    )


def contenders(
    shape: Shape, training: bool, device: str = "cpu", dtype: torch.dtype = torch.float32
) -> tuple[dict[str, Run], MDLSTM, Tensor]:
    """A call of "layer", "floor", "nn.LSTM" and "unrolled" each; the layer and its input."""
    factory = {"device": device, "dtype": dtype}
    layer, x = _layer(shape, "auto", factory)
    runs = {
        "layer": _step(layer, x, training),
        "floor": floor(shape, training, factory),
        "nn.LSTM": _step(*_lstm(shape, factory), training),
        "unrolled": _step(*_layer(shape, "unrolled", factory), training),
    }
    return runs, layer, x


def floor(shape: Shape, training: bool, factory: Mapping[str, Any] | None = None) -> Run:
    """The products of a sweep through torch and nothing else."""
    factory = factory or {}
    width, recurrent = shape.width, len(shape.grid) * shape.units
    counts = (np.diff(wavefronts(shape.grid).starts) * shape.batch).tolist()
    longest = max(counts)

    def randn(*extents: int) -> Tensor:
        return torch.randn(*extents, **factory)

    x, w = randn(shape.rows, shape.channels), randn(shape.channels, width)
    u, ut = randn(recurrent, width), randn(width, recurrent)
    operand, pre, back = randn(longest, recurrent), randn(longest, width), randn(longest, recurrent)
    gradient, h = randn(shape.rows, width), randn(shape.rows, recurrent)

    def run() -> None:
        for _ in range(shape.dirs):
            torch.mm(x, w)
            for count in counts[1:]:
                torch.mm(operand[:count], u, out=pre[:count])
            if training:
                for count in counts[1:]:
                    torch.mm(pre[:count], ut, out=back[:count])
                torch.mm(gradient.T, h)
                torch.mm(gradient.T, x)

    return run


def _layer(shape: Shape, backend: str, factory: Mapping[str, Any]) -> tuple[MDLSTM, Tensor]:
    options = dict(shape.options)
    layer = MDLSTM(shape.channels, shape.units, ndim=len(shape.grid), backend=backend, **options)
    return layer.to(**factory), torch.randn(shape.batch, *shape.grid, shape.channels, **factory)


def _lstm(shape: Shape, factory: Mapping[str, Any]) -> tuple[torch.nn.Module, Tensor]:
    """`torch.nn.LSTM` on rows as long as the grid's wavefronts are many, with as many cells in all."""
    layer = torch.nn.LSTM(shape.channels, shape.units, batch_first=True, **factory)
    rows = max(1, round(shape.dirs * shape.rows / shape.wavefronts))
    return layer, torch.randn(rows, shape.wavefronts, shape.channels, **factory)


def _step(layer: torch.nn.Module, x: Tensor, training: bool) -> Run:
    def output() -> Tensor:
        y = layer(x)
        return y if isinstance(y, Tensor) else y[0]

    @torch.no_grad()
    def infer() -> None:
        output()

    def train() -> None:
        layer.zero_grad()
        output().backward(gradient)

    with torch.no_grad():
        gradient = torch.randn_like(output())
    return train if training else infer


def interleave(
    runs: Mapping[str, Run], seconds: float, device: torch.device | None = None, least: int = 5
) -> dict[str, list[float]]:
    """Time each of `runs` in turn, over and over: as many rounds as fit in `seconds`, at least `least`."""
    for run in runs.values():
        run()
    _wait(device)
    times: dict[str, list[float]] = {name: [] for name in runs}
    end = time.perf_counter() + seconds
    while time.perf_counter() < end or len(times[next(iter(runs))]) < least:
        for name, run in runs.items():
            start = time.perf_counter()
            run()
            _wait(device)
            times[name].append(time.perf_counter() - start)
    return times


def ratios_of(times: Mapping[str, list[float]], name: str) -> dict[str, float]:
    """The median over the rounds of that contender's time as a ratio to each one's."""
    return {
        other: median(ours / theirs for ours, theirs in zip(times[name], series, strict=True))
        for other, series in times.items()
    }


@contextmanager
def torch_threads(count: int) -> Iterator[None]:
    """With so many threads for torch."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _wait(device: torch.device | None) -> None:
    if device is not None and device.type == "cuda":
        torch.cuda.synchronize(device)


def _peak_bytes(run: Run, device: torch.device) -> int:
    """Bytes of tensors that `run` has at most, beside those there were before."""
    if device.type == "cuda":
        before = torch.cuda.memory_allocated(device)
        torch.cuda.reset_peak_memory_stats(device)
        run()
        return int(torch.cuda.max_memory_allocated(device)) - before
    with torch.profiler.profile(profile_memory=True) as profile:
        run()
    now = peak = 0
    for event in profile.profiler.kineto_results.events():
        if event.name() == "[memory]":
            now += event.nbytes()
            peak = max(peak, now)
    return peak
