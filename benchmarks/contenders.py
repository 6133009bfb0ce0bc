"""Shapes, a layer and its contenders, and steps that are timed in turn, for the scripts of this folder.

Steps take turns within one process, so that whatever else the machine does slows all of them alike.
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

from mdlstm_tk._util.sizes import format_size, parse_size
from mdlstm_tk.backends.dispatch import Backend
from mdlstm_tk.errors import InputError
from mdlstm_tk.layer import MDLSTM
from mdlstm_tk.wavefront import wavefronts

Step = Callable[[], object]  # one forward pass, or one with its backward pass


@dataclass(frozen=True)
class Shape:
    """One layer and its input: N samples of a grid with C features, and n hidden units.

    Attributes:
        batch: N, the number of samples.
        grid: extents of the grid.
        channels: C, the number of features at each position.
        units: n, the number of hidden units.
        options: further arguments of `MDLSTM`.
    """

    batch: int
    grid: tuple[int, ...]
    channels: int
    units: int
    options: tuple[tuple[str, Any], ...] = ()

    @classmethod
    def parse(cls, text: str) -> Shape:
        """Read a shape from text such as "16,32x32,1,64".

        Raises:
            InputError: the text is not N,GRID,C,n.
        """
        words = [word.strip() for word in text.split(",")]
        if len(words) != 4 or not all(word.isdecimal() for word in (words[0], *words[2:])):
            raise InputError(f"invalid shape '{text}'; expected N,GRID,C,n such as 16,32x32,1,64")
        batch, grid, channels, units = words
        ndim = max(2, grid.count("x") + 1)
        shape = cls(int(batch), parse_size(grid, ndim), int(channels), int(units))
        if min(shape.batch, shape.channels, shape.units) < 1:
            raise InputError(f"invalid shape '{text}'; N, C and n must be at least 1")
        return shape

    def __str__(self) -> str:
        extras = "".join(f", {name}={value}" for name, value in self.options)
        return f"{self.batch}, {format_size(self.grid)}, {self.channels}, {self.units}{extras}"

    @property
    def num_directions(self) -> int:
        return 2 ** len(self.grid) if dict(self.options).get("directions") == "all" else 1

    @property
    def gate_dim(self) -> int:
        """G·n, the length of a position's pre-activations."""
        return (3 + len(self.grid)) * self.units

    @property
    def positions(self) -> int:
        """N·P, the positions of all samples."""
        return self.batch * prod(self.grid)

    @property
    def wavefronts(self) -> int:
        """T, the steps of a sweep."""
        return sum(self.grid) - len(self.grid) + 1

    def flops(self, training: bool) -> int:
        """Floating-point operations in the matrix products; training takes three times as many."""
        inputs = self.channels + len(self.grid) * self.units
        forward = 2 * self.num_directions * self.positions * inputs * self.gate_dim
        return forward * (3 if training else 1)

    def lstm_flops(self, training: bool) -> int:
        """Floating-point operations of `torch.nn.LSTM` over the same number of positions."""
        inputs = self.channels + self.units
        forward = 2 * self.num_directions * self.positions * inputs * 4 * self.units
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


def contenders(
    shape: Shape, training: bool, device: str = "cpu", dtype: torch.dtype = torch.float32
) -> tuple[dict[str, Step], MDLSTM, Tensor]:
    """Build everything that is measured for one shape.

    Returns:
        A step of each of "layer", "floor", "nn.LSTM" and "torch backend"; the layer; and its input,
        (N, *grid, C).
    """
    factory = {"device": device, "dtype": dtype}
    layer, x = make_layer(shape, "auto", factory)
    steps = {
        "layer": make_step(layer, x, training),
        "floor": floor(shape, training, factory),
        "nn.LSTM": make_step(*_lstm(shape, factory), training),
        "torch backend": make_step(*make_layer(shape, "torch", factory), training),
    }
    return steps, layer, x


def make_layer(
    shape: Shape, backend: Backend = "auto", factory: Mapping[str, Any] | None = None
) -> tuple[MDLSTM, Tensor]:
    """The layer of a shape and its input (N, *grid, C), with the device and dtype in `factory`."""
    factory, options = factory or {}, dict(shape.options)
    layer = MDLSTM(shape.channels, shape.units, ndim=len(shape.grid), backend=backend, **options)
    return layer.to(**factory), torch.randn(shape.batch, *shape.grid, shape.channels, **factory)


def floor(shape: Shape, training: bool, factory: Mapping[str, Any] | None = None) -> Step:
    """Build the matrix-product floor: the products of a sweep by torch, and nothing else.

    Forward: one (N·P, C) × (C, G·n), and for each wavefront one (rows, D·n) × (D·n, G·n) into a buffer that
    is reused. Backward: for each wavefront one (rows, G·n) × (G·n, D·n), and the two products that give the
    gradients of the weights.
    """
    factory = factory or {}
    gate_dim, recurrent_dim = shape.gate_dim, len(shape.grid) * shape.units
    rows = (np.diff(wavefronts(shape.grid).starts) * shape.batch).tolist()  # of each wavefront
    longest = max(rows)

    def randn(*extents: int) -> Tensor:
        return torch.randn(*extents, **factory)

    x, w_ih = randn(shape.positions, shape.channels), randn(shape.channels, gate_dim)
    w_hh, w_hh_transposed = randn(recurrent_dim, gate_dim), randn(gate_dim, recurrent_dim)
    h_prev, pre_activations = randn(longest, recurrent_dim), randn(longest, gate_dim)
    dh_prev = randn(longest, recurrent_dim)
    da, h = randn(shape.positions, gate_dim), randn(shape.positions, recurrent_dim)

    def step() -> None:
        for _ in range(shape.num_directions):
            torch.mm(x, w_ih)
            for count in rows[1:]:
                torch.mm(h_prev[:count], w_hh, out=pre_activations[:count])
            if training:
                for count in rows[1:]:
                    torch.mm(pre_activations[:count], w_hh_transposed, out=dh_prev[:count])
                torch.mm(da.T, h)
                torch.mm(da.T, x)

    return step


def make_step(layer: torch.nn.Module, x: Tensor, training: bool) -> Step:
    """A forward pass of a module without gradients, or one with its backward pass.

    Args:
        layer: returns a tensor, or a tuple whose first entry is one.
        x: its input.
        training: whether the step ends with the gradients of all parameters.
    """

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


def _lstm(shape: Shape, factory: Mapping[str, Any]) -> tuple[torch.nn.Module, Tensor]:
    """`torch.nn.LSTM` with one step per wavefront, over about the same number of positions in all."""
    layer = torch.nn.LSTM(shape.channels, shape.units, batch_first=True, **factory)
    rows = max(1, round(shape.num_directions * shape.positions / shape.wavefronts))
    return layer, torch.randn(rows, shape.wavefronts, shape.channels, **factory)


def interleave(
    steps: Mapping[str, Step], seconds: float, device: torch.device | None = None, least: int = 5
) -> dict[str, list[float]]:
    """Time the steps in turn, over and over, after one untimed call of each.

    Args:
        steps: what to time, by name.
        seconds: begin rounds until this much time has passed.
        device: wait for this device after each step, if it is a GPU.
        least: number of rounds even if they take longer.

    Returns:
        The seconds of every round, by name.
    """
    for step in steps.values():
        step()
    _synchronize(device)
    times: dict[str, list[float]] = {name: [] for name in steps}
    end = time.perf_counter() + seconds
    while time.perf_counter() < end or len(times[next(iter(steps))]) < least:
        for name, step in steps.items():
            start = time.perf_counter()
            step()
            _synchronize(device)
            times[name].append(time.perf_counter() - start)
    return times


def ratios_of(times: Mapping[str, list[float]], name: str) -> dict[str, float]:
    """The median over the rounds of this contender's time divided by each other one's."""
    return {
        other: median(a / b for a, b in zip(times[name], series, strict=True))
        for other, series in times.items()
    }


@contextmanager
def torch_threads(count: int) -> Iterator[None]:
    """Let torch use this number of threads inside the `with` statement."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def peak_bytes(step: Step, device: torch.device) -> int:
    """The most bytes that tensors take during a step, beyond those that existed before it."""
    if device.type == "cuda":
        before = torch.cuda.memory_allocated(device)
        torch.cuda.reset_peak_memory_stats(device)
        step()
        return int(torch.cuda.max_memory_allocated(device)) - before
    with torch.profiler.profile(profile_memory=True) as profile:
        step()
    now = peak = 0
    for event in profile.profiler.kineto_results.events():
        if event.name() == "[memory]":
            now += event.nbytes()
            peak = max(peak, now)
    return peak


def _synchronize(device: torch.device | None) -> None:
    if device is not None and device.type == "cuda":
        torch.cuda.synchronize(device)
