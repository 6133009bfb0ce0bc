"""Measure the speed of the layer, or of its exports, on the CPU of this machine.

    python benchmarks/bench.py                                    # the layer, in a table of shapes
    python benchmarks/bench.py --shape 16,32x32,1,64 --threads 1  # N,GRID,C,n
    python benchmarks/bench.py --runtime                          # its exports, under ONNX Runtime

Each row gives the time of one call, and its ratios to other networks that take turns with it in one
process. The floor is the layer's matrix products alone, computed by torch. nn.LSTM runs over the same
number of positions, which takes fewer operations; "per FLOP" divides each time by its operations. The torch
backend is the same layer in plain torch operations. Times are medians, in seconds in JSON.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from itertools import product
from pathlib import Path
from statistics import median
from typing import Any

os.environ.setdefault("KINETO_LOG_LEVEL", "6")  # torch's profiler, which measures the peak memory, would
os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")  # print a banner for each row

import numpy as np
import torch
from contenders import SHAPES, Shape, contenders, interleave, peak_bytes, ratios_of, torch_threads
from measuring import argument_parser, markdown

from mdlstm_tk.export import export_onnx
from mdlstm_tk.export.lowering.lower import FORMS
from mdlstm_tk.runtime import Session

Row = dict[str, Any]
Columns = Mapping[str, Callable[[Row], str]]  # title → the text of a cell

LAYER_COLUMNS: Columns = {
    "N, grid, C, n": lambda row: row["shape"],
    "threads": lambda row: str(row["threads"]),
    "pass": lambda row: "training" if row["training"] else "forward",
    "ms": lambda row: f"{row['seconds'] * 1e3:.2f}",
    "GFLOP/s": lambda row: f"{row['gflops']:.1f}",
    "÷ floor": lambda row: f"{row['to_floor']:.2f}",
    "÷ nn.LSTM": lambda row: f"{row['to_lstm']:.2f}",
    "per FLOP": lambda row: f"{row['to_lstm_per_flop']:.2f}",
    "÷ torch backend": lambda row: f"{row['to_torch_backend']:.2f}",
    "peak MiB": lambda row: f"{row['peak_bytes'] / 2**20:.1f}",
}
RUNTIME_COLUMNS: Columns = {
    "N, grid, C, n": lambda row: row["shape"],
    "threads": lambda row: str(row["threads"]),
    "form": lambda row: row["form"],
    "ms": lambda row: f"{row['seconds'] * 1e3:.2f}",
    "÷ floor": lambda row: f"{row['to_floor']:.2f}",
    "÷ nn.LSTM": lambda row: f"{row['to_lstm']:.2f}",
    "÷ layer in torch": lambda row: f"{row['to_layer']:.2f}",
    "load ms": lambda row: f"{row['load_seconds'] * 1e3:.1f}",
    "export s": lambda row: f"{row['export_seconds']:.1f}",
    "KiB": lambda row: f"{row['bytes'] / 1024:.0f}",
    "max error": lambda row: f"{row['max_abs']:.0e}",
}
RUNTIME_SHAPES = (
    Shape(16, (8, 8), 1, 16),
    Shape(16, (32, 32), 1, 64),
    Shape(1, (64, 64), 1, 32),
    Shape(1, (128, 128), 1, 32),
)
LOADS = 5  # measurements of the load time
STARTS = 7  # measurements of the start-up time
IMPORTS = "import numpy, onnxruntime"  # the least that `mdlstm infer` has to import


def measure(shape: Shape, threads: int, training: bool, seconds: float = 2.0) -> Row:
    """Time a layer, forward or with its backward pass, against the floor, `nn.LSTM` and the torch backend.

    Args:
        shape: the layer and its input.
        threads: CPU threads that torch may use.
        training: measure forward and backward, or forward alone.
        seconds: time for all contenders together.
    """
    steps, layer, x = contenders(shape, training)
    with torch_threads(threads):
        times = interleave(steps, seconds)
        peak = peak_bytes(steps["layer"], torch.device("cpu"))
    ratios, flops, median_seconds = ratios_of(times, "layer"), shape.flops(training), median(times["layer"])
    return {
        "shape": str(shape),
        "threads": threads,
        "training": training,
        "backend": layer.backend_for(x).name,
        "seconds": median_seconds,
        "gflops": flops / median_seconds / 1e9,
        "to_floor": ratios["floor"],
        "to_lstm": ratios["nn.LSTM"],
        "to_lstm_per_flop": ratios["nn.LSTM"] * shape.lstm_flops(training) / flops,
        "to_torch_backend": ratios["torch backend"],
        "peak_bytes": peak,
    }


def measure_export(shape: Shape, threads: int, form: str, seconds: float = 2.0) -> Row:
    """Export a layer in a form, and time the file together with the contenders."""
    torch.manual_seed(0)
    runs, layer, x = contenders(shape, training=False)
    with tempfile.TemporaryDirectory() as folder, torch_threads(threads):
        grid = shape.grid if form == "unrolled" else None  # a scan is measured as a file for any grid
        report = export_onnx(layer, Path(folder) / "layer.onnx", grid=grid, form=form)
        loads = []
        for _ in range(LOADS):
            start = time.perf_counter()
            session = Session(report.path, "cpu", threads=threads)
            loads.append(time.perf_counter() - start)
        times = interleave({"runtime": partial(session, x.numpy()), **runs}, seconds)
        session.close()
    ratios = ratios_of(times, "runtime")
    return {
        "shape": str(shape),
        "threads": threads,
        "form": form,
        "seconds": median(times["runtime"]),
        "to_floor": ratios["floor"],
        "to_lstm": ratios["nn.LSTM"],
        "to_layer": ratios["layer"],
        "load_seconds": median(loads),
        "export_seconds": report.seconds,
        "bytes": report.bytes,
        "max_abs": report.max_abs,
    }


def measure_cold_start() -> str:
    """A sentence on how long a complete `mdlstm infer` on an 8×8 matrix takes, compared with a process that
    only imports NumPy and ONNX Runtime."""
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        layer, _ = contenders(Shape(1, (8, 8), 1, 16), training=False)[1:]
        export_onnx(layer, folder / "model.onnx", grid=(8, 8))
        np.save(folder / "matrix.npy", np.zeros((8, 8), np.float32))
        infer = ["-m", "mdlstm_tk", "infer", "matrix.npy", "-m", "model.onnx", "--force", "-q"]
        steps = {
            name: partial(subprocess.run, [sys.executable, *arguments], cwd=folder, check=True)
            for name, arguments in (("infer", infer), ("imports", ["-c", IMPORTS]))
        }
        times = interleave(steps, 0.0, least=STARTS)
    whole, imports = median(times["infer"]), median(times["imports"])
    return (
        f"A whole `mdlstm infer` of an 8×8 matrix takes {whole:.2f} s, {whole / imports:.2f} times as long "
        f'as\n`python -c "{IMPORTS}"`.'
    )


def table(rows: Sequence[Row], columns: Columns) -> str:
    """The rows as a table in Markdown."""
    return markdown(tuple(columns), [[text(row) for text in columns.values()] for row in rows], 1)


def main(words: Sequence[str] | None = None) -> None:
    parser = argument_parser(__doc__)
    parser.add_argument("--shape", type=Shape.parse, action="append", metavar="N,GRID,C,n")
    parser.add_argument("--threads", type=int, action="append", help="1 and all cores; with --runtime 1")
    parser.add_argument("--seconds", type=float, default=2.0, help="seconds to measure each row for")
    parser.add_argument("--runtime", action="store_true", help="measure exported layers")
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    options = parser.parse_args(words)
    # One thread by default: idle threads of ONNX Runtime spin for a while after a run, which slows down
    # the next measurement.
    threads = options.threads or sorted({1} if options.runtime else {1, torch.get_num_threads()})
    shapes, columns, variants, call = SHAPES, LAYER_COLUMNS, (False, True), measure
    if options.runtime:
        shapes, columns, variants, call = RUNTIME_SHAPES, RUNTIME_COLUMNS, tuple(FORMS), measure_export
    rows = []
    for case in product(options.shape or shapes, threads, variants):
        print(*case, sep="; ", file=sys.stderr)
        rows.append(call(*case, options.seconds))
    if options.json:
        print(json.dumps(rows))
        return
    print(table(rows, columns))
    if options.runtime:
        print(f"\n{measure_cold_start()}")


if __name__ == "__main__":
    main()
