"""Measure the speed of the layer, or of its exports, on the CPU of this machine.

    python benchmarks/bench.py                                    # the layer, in a table of shapes
    python benchmarks/bench.py --shape 16,32x32,1,64 --threads 1  # N,GRID,C,n
    python benchmarks/bench.py runtime      # its exports, under ONNX Runtime
    python benchmarks/bench.py exports      # their CPU time, with and without ONNX Runtime's optimiser
    python benchmarks/bench.py compiling    # processor time to compile kernels, in fresh processes

Each row gives the time of one call, and its ratios to other networks that take turns with it in one
process. The floor is the layer's matrix products alone, computed by torch. nn.LSTM runs over the same
number of positions, which takes fewer operations; "per FLOP" divides each time by its operations. The torch
backend is the same layer in plain torch operations. Times are medians.

For `exports` each contender runs four times in a turn: the first run finds the processor's caches filled by
the others, the last one finds its own data there.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import torch
from contenders import ALL, SHAPES, Shape, contenders, floor, make_layer
from measuring import (
    argument_parser,
    interleave,
    markdown,
    milliseconds,
    ort_session,
    peak_bytes,
    python,
    ratio,
    torch_threads,
)

from mdlstm_tk import MDLSTM
from mdlstm_tk.export import ExportReport, export_onnx
from mdlstm_tk.export.lowering.lower import FORMS
from mdlstm_tk.runtime import Session

Row = dict[str, Any]  # column → text or number

TABLES = ("layer", "runtime", "exports", "compiling")
FORMATS = {  # of the columns whose numbers have not two decimals
    **dict.fromkeys(("GFLOP/s", "peak MiB", "load ms", "export s", "s"), ".1f"),
    "KiB": ".0f",
    "max error": ".0e",
}
RUNTIME_SHAPES = (SHAPES[0], SHAPES[1], Shape(1, (64, 64), 1, 32), SHAPES[3])
EXPORTED_SHAPES = (
    Shape(1, (64, 64), 1, 32),
    Shape(1, (64, 64), 1, 32, ALL),
    Shape(1, (128, 128), 1, 16),
    Shape(1, (32, 32), 1, 32, ALL),
    Shape(16, (8, 8), 1, 16),
    Shape(8, (64, 64), 3, 32, ALL),
)
PASSES = {"forward": False, "training": True}
RUNS = 4  # of a contender in each turn of `exports`
STARTS = 7  # measurements of the start-up time
IMPORTS = "import numpy, onnxruntime"  # the least that `mdlstm infer` has to import
COMPILE = """
import os, torch
from mdlstm_tk import MDLSTM
torch.set_num_threads(1)
layer, training = MDLSTM(1, 4, cell={!r}), {}
y = layer(torch.zeros(1, 2, 2, 1), return_state={})
if training:
    (y[0] if isinstance(y, tuple) else y).sum().backward()
print(sum(os.times()[:2]))
"""
COMPILED = {  # cell, training, states
    "inference, first cell": ("graves", False, False),
    "training, the same cell": ("graves", True, False),
    "training with states, the same cell": ("graves", True, True),
    "inference, another cell": ("stable", False, False),
    "training, that cell": ("stable", True, False),
    "training with states, slstm": ("slstm", True, True),
}


def layer_row(shape: Shape, threads: int, pass_name: str, seconds: float) -> Row:
    """A layer, forward or with its backward pass, beside the floor, `nn.LSTM` and the torch backend."""
    training = PASSES[pass_name]
    steps = contenders(shape, training)[0]
    with torch_threads(threads):
        times = interleave(steps, seconds)
        peak = peak_bytes(steps["layer"])
    to_lstm = ratio(times["layer"], times["nn.LSTM"])
    flops, ms = shape.flops(training), milliseconds(times["layer"])
    return {
        "N, grid, C, n": str(shape),
        "threads": threads,
        "pass": pass_name,
        "ms": ms,
        "GFLOP/s": flops / ms / 1e6,
        "÷ floor": ratio(times["layer"], times["floor"]),
        "÷ nn.LSTM": to_lstm,
        "per FLOP": to_lstm * shape.lstm_flops(training) / flops,
        "÷ torch backend": ratio(times["layer"], times["torch backend"]),
        "peak MiB": peak / 2**20,
    }


@contextmanager
def exported(layer: MDLSTM, shape: Shape, form: str) -> Iterator[ExportReport]:
    """A file of a layer; a scan is one for any grid."""
    with tempfile.TemporaryDirectory() as folder:
        grid = shape.grid if form == "unrolled" else None
        yield export_onnx(layer, Path(folder) / "layer.onnx", grid=grid, form=form)


def runtime_row(shape: Shape, threads: int, form: str, seconds: float) -> Row:
    """A layer exported in a form, beside the contenders."""
    torch.manual_seed(0)
    runs, layer, x = contenders(shape, training=False)
    with exported(layer, shape, form) as report, torch_threads(threads):
        load = partial(Session, report.path, "cpu", threads=threads)
        loading = interleave({"load": load}, 0)["load"]
        times = interleave({"runtime": partial(load(), x.numpy()), **runs}, seconds)
    return {
        "N, grid, C, n": str(shape),
        "threads": threads,
        "form": form,
        "ms": milliseconds(times["runtime"]),
        **{f"÷ {name}": ratio(times["runtime"], times[name]) for name in ("floor", "nn.LSTM")},
        "÷ layer in torch": ratio(times["runtime"], times["layer"]),
        "load ms": milliseconds(loading),
        "export s": report.seconds,
        "KiB": report.bytes / 1024,
        "max error": report.max_abs,
    }


def exports_row(shape: Shape, threads: int, form: str, seconds: float) -> Row:
    """The CPU time of an exported layer, divided by that of its matrix products."""
    torch.manual_seed(0)
    layer, x = make_layer(shape)
    with exported(layer, shape, form) as report, torch_threads(threads):
        plain = ort_session(report.path, intra_op_num_threads=threads)
        session = Session(report.path, "cpu", threads=threads)
        steps = {
            "floor": floor(shape, training=False),
            "plain": lambda: plain.run(None, {"x": x.numpy()}),
            "session": lambda: session(x.numpy()),
        }
        times = interleave(steps, seconds, runs=RUNS, clock=time.process_time)
    of_runs = {name: np.median(series / times["floor"], axis=0) for name, series in times.items()}
    return {
        "N, grid, C, n": str(shape),
        "form": form,
        "optimised": of_runs["plain"][-1],
        "`Session`": of_runs["session"][-1],
        "`Session`, first run": of_runs["session"][0],
    }


def cold_start() -> str:
    """A sentence on how long a complete `mdlstm infer` on an 8×8 matrix takes, compared with a process that
    only imports NumPy and ONNX Runtime."""
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        export_onnx(MDLSTM(1, 16), folder / "model.onnx", grid=(8, 8))
        np.save(folder / "matrix.npy", np.zeros((8, 8), np.float32))
        infer = ["-m", "mdlstm_tk", "infer", "matrix.npy", "-m", "model.onnx", "--force", "-q"]
        steps = {
            name: partial(subprocess.run, [sys.executable, *arguments], cwd=folder, check=True)
            for name, arguments in (("infer", infer), ("imports", ["-c", IMPORTS]))
        }
        times = interleave(steps, 0, least=STARTS)
    return (
        f"A whole `mdlstm infer` of an 8×8 matrix takes {milliseconds(times['infer']) / 1000:.2f} s, "
        f'{ratio(times["infer"], times["imports"]):.2f} times as long as\n`python -c "{IMPORTS}"`.'
    )


def compiling_rows() -> Iterator[Row]:
    """Fresh processes, each after those above it have filled the cache of kernels. The time of a second
    process, which takes everything from the cache, is subtracted."""
    with tempfile.TemporaryDirectory() as folder:
        for label, options in COMPILED.items():
            code = COMPILE.format(*options)
            first, second = (float(python("-c", code, NUMBA_CACHE_DIR=folder)) for _ in range(2))
            yield {"what a process runs first": label, "s": first - second}


def rows_of(options: argparse.Namespace) -> Iterator[Row]:
    """The rows of a table."""
    if options.table == "compiling":
        yield from compiling_rows()
    else:
        # One thread by default, but for the layer: idle threads of ONNX Runtime spin for a while after a
        # run, which slows down the next measurement.
        cores = {torch.get_num_threads()} if options.table == "layer" else set()
        shapes, variants, measure = {
            "layer": (SHAPES, PASSES, layer_row),
            "runtime": (RUNTIME_SHAPES, FORMS, runtime_row),
            "exports": (EXPORTED_SHAPES, FORMS, exports_row),
        }[options.table]
        for case in product(options.shape or shapes, options.threads or sorted({1, *cores}), variants):
            print(*case, sep="; ", file=sys.stderr)
            yield measure(*case, options.seconds)


def main(words: Sequence[str] | None = None) -> None:
    parser = argument_parser(__doc__)
    parser.add_argument("table", nargs="?", choices=TABLES, default="layer")
    parser.add_argument("--shape", type=Shape.parse, action="append", metavar="N,GRID,C,n")
    parser.add_argument("--threads", type=int, action="append", help="1, and all cores for the layer")
    parser.add_argument("--seconds", type=float, default=2.0, help="seconds to measure each row for")
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    options = parser.parse_args(words)
    rows = list(rows_of(options))
    if options.json:
        print(json.dumps(rows))
        return
    texts = [[text_of(column, value) for column, value in row.items()] for row in rows]
    print(markdown(tuple(rows[0]), texts, 1))
    if options.table == "runtime":
        print(f"\n{cold_start()}")


def text_of(column: str, value: str | int | float) -> str:
    """The text of a cell."""
    return format(value, FORMATS.get(column, ".2f")) if isinstance(value, float) else str(value)


if __name__ == "__main__":
    main()
