"""Measure the speed of the layer, or of its exports, on the CPU of this machine: docs/performance.md.

    python benchmarks/bench.py layer                                    # in a table of shapes
    python benchmarks/bench.py layer --shape 16,32x32,1,64 --threads 1  # N,GRID,C,n
    python benchmarks/bench.py runtime                                  # its exports, under ONNX Runtime

Each row gives the time of one call, and its ratios to others that take turns with it in one process. The
floor is the layer's matrix products alone, computed by torch. nn.LSTM runs over the same number of
positions, which takes fewer operations. Times are medians.
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Sequence
from functools import partial
from itertools import product
from pathlib import Path

import torch
from contenders import SHAPES, Shape, contenders
from measuring import argument_parser, interleave, markdown, milliseconds, peak_bytes, ratio, torch_threads

from mdlstm_tk.export import export_onnx
from mdlstm_tk.runtime import Session

RUNTIME_SHAPES = (SHAPES[0], SHAPES[1], Shape(1, (64, 64), 1, 32), SHAPES[3])
LAYER = ("N, grid, C, n", "threads", "pass", "ms", "÷ floor", "÷ nn.LSTM", "peak MiB")
RUNTIME = ("N, grid, C, n", "form", "ms", "÷ floor", "÷ layer in torch", "load ms", "export s", "KiB")


def layer_row(shape: Shape, threads: int, training: bool, seconds: float) -> list[str]:
    """A layer, forward or with its backward pass, beside the floor and `nn.LSTM`."""
    steps = contenders(shape, training)[0]
    with torch_threads(threads):
        times = interleave(steps, seconds)
        peak = peak_bytes(steps["layer"]) / 2**20
    ratios = [f"{ratio(times['layer'], times[name]):.2f}" for name in ("floor", "nn.LSTM")]
    name, ms = "training" if training else "forward", f"{milliseconds(times['layer']):.2f}"
    return [str(shape), str(threads), name, ms, *ratios, f"{peak:.1f}"]


def runtime_row(shape: Shape, form: str, seconds: float) -> list[str]:
    """A layer exported in a form, on one thread, beside the floor and the layer in torch."""
    torch.manual_seed(0)
    steps, layer, x = contenders(shape, training=False)
    del steps["nn.LSTM"]
    with tempfile.TemporaryDirectory() as folder, torch_threads(1):
        grid = shape.grid if form == "unrolled" else None
        report = export_onnx(layer, Path(folder) / "layer.onnx", grid=grid, form=form)
        load = partial(Session, report.path, "cpu", threads=1)
        loading = milliseconds(interleave({"load": load}, 0)["load"])
        times = interleave({"runtime": partial(load(), x.numpy()), **steps}, seconds)
    ratios = [f"{ratio(times['runtime'], times[name]):.2f}" for name in ("floor", "layer")]
    sizes = [f"{loading:.1f}", f"{report.seconds:.1f}", f"{report.bytes / 1024:.0f}"]
    return [str(shape), form, f"{milliseconds(times['runtime']):.2f}", *ratios, *sizes]


def main(words: Sequence[str] | None = None) -> None:
    parser = argument_parser(__doc__)
    parser.add_argument("table", choices=("layer", "runtime"))
    parser.add_argument("--shape", type=Shape.parse, action="append", metavar="N,GRID,C,n")
    parser.add_argument("--threads", type=int, action="append", help="of the layer; default: 1 and all")
    parser.add_argument("--seconds", type=float, default=2.0, help="seconds to measure each row for")
    options = parser.parse_args(words)
    rows, seconds = [], options.seconds
    if options.table == "layer":
        threads = options.threads or sorted({1, torch.get_num_threads()})
        for shape, count, training in product(options.shape or SHAPES, threads, (False, True)):
            print(shape, count, training, sep="; ", file=sys.stderr)
            rows.append(layer_row(shape, count, training, seconds))
    else:
        for shape, form in product(options.shape or RUNTIME_SHAPES, ("unrolled", "scan")):
            print(shape, form, sep="; ", file=sys.stderr)
            rows.append(runtime_row(shape, form, seconds))
    print(markdown(LAYER if options.table == "layer" else RUNTIME, rows))


if __name__ == "__main__":
    main()
