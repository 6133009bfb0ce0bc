"""The speed of the layer, as ratios to its matrix products alone, to `nn.LSTM` and to the torch backend."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import product
from statistics import median

import torch

from mdlstm_tk.benchmark.contenders import contenders
from mdlstm_tk.benchmark.shapes import SHAPES, Shape
from mdlstm_tk.benchmark.timing import interleave, peak_bytes, ratios_of, torch_threads


@dataclass(frozen=True)
class Measurement:
    """The cost of one call of a layer. Times are medians; ratios are medians of the ratios of each round.

    Attributes:
        shape: what was measured.
        training: forward and backward, or forward alone.
        device: "cpu", or the name of the GPU.
        threads: CPU threads that torch may use.
        backend: the backend that ran.
        seconds: of one call.
        gflops: billions of floating-point operations in its matrix products, per second.
        to_floor: ratio to the time of the matrix-product floor.
        to_lstm: ratio to the time of `torch.nn.LSTM` over the same number of positions, in sequences that
            are as long as the grid has wavefronts.
        to_lstm_per_flop: `to_lstm` with each time divided by the operations in its products.
        to_torch_backend: ratio to the time of the same layer in plain torch operations.
        peak_bytes: the most that tensors take during a call, beyond input and weights.
        wavefronts: steps of a sweep.
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
    to_torch_backend: float
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
    """Time a layer against the floor, `nn.LSTM` and the torch backend.

    Args:
        shape: the layer and its input.
        training: measure forward and backward, or forward alone.
        seconds: time for all contenders together.
        threads: CPU threads that torch may use.
        device: "cpu", "cuda" or "cuda:1".
        dtype: of parameters and input.
    """
    steps, layer, x = contenders(shape, training, device, dtype)
    with torch_threads(threads):
        times = interleave(steps, seconds, torch.device(device))
        peak = peak_bytes(steps["layer"], torch.device(device))
    ratios = ratios_of(times, "layer")
    flops = shape.flops(training)
    median_seconds = median(times["layer"])
    return Measurement(
        shape=str(shape),
        training=training,
        device=torch.cuda.get_device_name(device) if device != "cpu" else "cpu",
        threads=threads,
        backend=layer.backend_for(x).name,
        seconds=median_seconds,
        gflops=flops / median_seconds / 1e9,
        to_floor=ratios["floor"],
        to_lstm=ratios["nn.LSTM"],
        to_lstm_per_flop=ratios["nn.LSTM"] * shape.lstm_flops(training) / flops,
        to_torch_backend=ratios["torch backend"],
        peak_bytes=peak,
        wavefronts=shape.wavefronts,
    )


def measure_layers(
    shapes: Sequence[Shape] = SHAPES,
    thread_counts: Sequence[int] = (1,),
    seconds: float = 2.0,
    device: str = "cpu",
    dtype: torch.dtype = torch.float32,
    on_start: Callable[[str], None] = lambda _: None,
) -> list[Measurement]:
    """Measure every shape with every number of threads, forward alone and with its backward pass.

    Args:
        shapes: the layers and their inputs.
        thread_counts: numbers of CPU threads.
        seconds: time for each row.
        device: "cpu", "cuda" or "cuda:1".
        dtype: of parameters and inputs.
        on_start: called before each measurement with what it is, such as
            "2/4  16, 8x8, 1, 16  forward, 1 thread".
    """
    cases = list(product(shapes, thread_counts, (False, True)))
    rows = []
    for number, (shape, threads, training) in enumerate(cases, 1):
        passes = "forward and backward" if training else "forward"
        plural = "" if threads == 1 else "s"
        on_start(f"{number}/{len(cases)}  {shape}  {passes}, {threads} thread{plural}")
        rows.append(measure(shape, training, seconds, threads, device, dtype))
    return rows
