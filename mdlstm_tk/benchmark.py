"""How fast a sweep is, as a ratio to what it cannot do without: its matrix products.

The *floor* of a shape is those products through torch and nothing else: forward one
(N·P, C) × (C, G·n), and one (rows, D·n) × (D·n, G·n) a wavefront into a reused buffer; backward one
(rows, G·n) × (G·n, D·n) a wavefront, and the two that give the weights' gradients. Contenders are
timed in turn within one process, so that whatever else the machine does hits all alike.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from math import prod
from statistics import median
from typing import Any

import torch
from torch import Tensor

from mdlstm_tk.layer import MDLSTM
from mdlstm_tk.wavefront import wavefronts

Run = Callable[[], object]
CONTENDERS = ("fused", "unrolled", "nn.LSTM")


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

    def __str__(self) -> str:
        grid = "×".join(map(str, self.grid))
        extras = "".join(f", {name}={value}" for name, value in self.options)
        return f"{self.batch}, {grid}, {self.channels}, {self.units}{extras}"

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
    def flops(self) -> int:
        """Operations of the products forward; training has three times as many."""
        return 2 * self.dirs * self.rows * (self.channels + len(self.grid) * self.units) * self.width


SHAPES = (
    Shape(16, (8, 8), 1, 16),
    Shape(16, (32, 32), 1, 64),
    Shape(4, (64, 64), 16, 32),
    Shape(1, (128, 128), 1, 32),
    Shape(16, (32, 32), 1, 64, (("directions", "all"),)),
    Shape(16, (32, 32), 1, 64, (("layer_norm", True),)),
    Shape(1, (16, 16, 16), 1, 32),
    Shape(1, (32, 32), 1, 32),
    Shape(1, (512, 512), 1, 32),
)


@dataclass(frozen=True)
class Measurement:
    """Medians of the time of one call, in seconds, and of its ratio to the floor's.

    Attributes:
        shape: what was measured.
        contender: "floor", "fused", "unrolled" or "nn.LSTM" (the same number of cells, in one axis).
        training: with backward, or forward alone.
        threads: that torch was allowed.
        seconds: of one call.
        ratio: to the floor of the same round.
        gflops: billions of floating-point operations in its products, a second.
    """

    shape: str
    contender: str
    training: bool
    threads: int
    seconds: float
    ratio: float
    gflops: float

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


def floor(shape: Shape, training: bool) -> Run:
    """The products of a sweep through torch and nothing else."""
    dirs, width, recurrent = shape.dirs, shape.width, len(shape.grid) * shape.units
    counts = [
        int(k) * shape.batch for k in wavefronts(shape.grid).starts[1:] - wavefronts(shape.grid).starts[:-1]
    ]
    x, w = torch.randn(shape.rows, shape.channels), torch.randn(shape.channels, width)
    u, ut = torch.randn(recurrent, width), torch.randn(width, recurrent)
    operand, pre = torch.randn(max(counts), recurrent), torch.randn(max(counts), width)
    back = torch.empty(max(counts), recurrent)
    gradient, h = torch.randn(shape.rows, width), torch.randn(shape.rows, recurrent)

    def run() -> None:
        for _ in range(dirs):
            torch.mm(x, w)
            for count in counts[1:]:
                torch.mm(operand[:count], u, out=pre[:count])
            if training:
                for count in counts[1:]:
                    torch.mm(pre[:count], ut, out=back[:count])
                torch.mm(gradient.T, h)
                torch.mm(gradient.T, x)

    return run


def sweep(shape: Shape, backend: str, training: bool) -> Run:
    """A layer on that backend."""
    layer = MDLSTM(
        shape.channels, shape.units, ndim=len(shape.grid), backend=backend, **dict(shape.options)
    )
    return _step(layer, torch.randn(shape.batch, *shape.grid, shape.channels), training)


def lstm(shape: Shape, training: bool) -> Run:
    """`torch.nn.LSTM` on rows as long as the grid's wavefronts are many, with as many cells in all."""
    layer = torch.nn.LSTM(shape.channels, shape.units, batch_first=True)
    steps = sum(shape.grid) - len(shape.grid) + 1
    x = torch.randn(max(1, round(shape.rows / steps)), steps, shape.channels)
    return _step(layer, x, training)


def _step(layer: torch.nn.Module, x: Tensor, training: bool) -> Run:
    def output() -> Tensor:
        y = layer(x)
        return y if isinstance(y, Tensor) else y[0]

    @torch.no_grad()
    def infer() -> None:
        output()

    def train() -> None:
        layer.zero_grad()
        y = output()
        y.backward(gradient)

    with torch.no_grad():
        gradient = torch.randn_like(output())
    return train if training else infer


def interleave(runs: dict[str, Run], seconds: float = 3.0, least: int = 5) -> dict[str, list[float]]:
    """Time each of `runs` in turn, over and over: as many rounds as fit in `seconds`, at least `least`."""
    for run in runs.values():
        run()
    times: dict[str, list[float]] = {name: [] for name in runs}
    end = time.perf_counter() + seconds
    while time.perf_counter() < end or len(times[next(iter(runs))]) < least:
        for name, run in runs.items():
            start = time.perf_counter()
            run()
            times[name].append(time.perf_counter() - start)
    return times


def measure(
    shape: Shape, contenders: Sequence[str] = CONTENDERS, seconds: float = 3.0
) -> list[Measurement]:
    """The floor and the contenders on one shape, forward and training, with the threads torch has."""
    results = []
    for training in (False, True):
        runs = {"floor": floor(shape, training)}
        for name in contenders:
            runs[name] = lstm(shape, training) if name == "nn.LSTM" else sweep(shape, name, training)
        times = interleave(runs, seconds)
        for name, series in times.items():
            ratio = median(t / f for t, f in zip(series, times["floor"], strict=True))
            flops = (3 if training else 1) * (_lstm_flops(shape) if name == "nn.LSTM" else shape.flops)
            gflops = flops / median(series) / 1e9
            threads = torch.get_num_threads()
            results.append(Measurement(str(shape), name, training, threads, median(series), ratio, gflops))
    return results


def _lstm_flops(shape: Shape) -> int:
    return 2 * shape.rows * (shape.channels + shape.units) * 4 * shape.units
