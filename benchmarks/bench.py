"""Measure the speed of the layer, or of its exports, on the CPU of this machine.

    python benchmarks/bench.py                                    # the layer, in a table of shapes
    python benchmarks/bench.py --shape 16,32x32,1,64 --threads 1  # N,GRID,C,n
    python benchmarks/bench.py runtime      # its exports, under ONNX Runtime
    python benchmarks/bench.py parts        # the share of products and cells in a sweep
    python benchmarks/bench.py compiling    # processor time to compile kernels, in fresh processes
    python benchmarks/bench.py isolation    # sessions in a child process beside those in this one

Each row gives the time of one call, and its ratios to other networks that take turns with it in one
process. The floor is the layer's matrix products alone, computed by torch. nn.LSTM runs over the same
number of positions, which takes fewer operations; "per FLOP" divides each time by its operations. The torch
backend is the same layer in plain torch operations. Times are medians. The share of a part is the time that
the layer saves without it.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import torch
from contenders import ALL, SHAPES, Shape, contenders, make_layer, make_step
from measuring import (
    Step,
    argument_parser,
    interleave,
    markdown,
    milliseconds,
    peak_bytes,
    python,
    ratio,
    torch_threads,
)
from numba import cfunc

from mdlstm_tk import MDLSTM
from mdlstm_tk.backends.cpu.plan import plans
from mdlstm_tk.export import export_onnx
from mdlstm_tk.export.lowering.lower import FORMS
from mdlstm_tk.runtime import Session

Row = dict[str, Any]  # column → text or number

FORMATS = {  # of each table: column → format of its numbers
    "layer": {
        "N, grid, C, n": "",
        "threads": "",
        "pass": "",
        "ms": ".2f",
        "GFLOP/s": ".1f",
        "÷ floor": ".2f",
        "÷ nn.LSTM": ".2f",
        "per FLOP": ".2f",
        "÷ torch backend": ".2f",
        "peak MiB": ".1f",
    },
    "runtime": {
        "N, grid, C, n": "",
        "threads": "",
        "form": "",
        "ms": ".2f",
        "÷ floor": ".2f",
        "÷ nn.LSTM": ".2f",
        "÷ layer in torch": ".2f",
        "load ms": ".1f",
        "export s": ".1f",
        "KiB": ".0f",
        "max error": ".0e",
    },
    "parts": {
        "N, grid, C, n": "",
        "pass": "",
        "ms": ".2f",
        "products": ".0%",
        "cell": ".0%",
        "rest": ".0%",
    },
    "compiling": {"what a process runs first": "", "s": ".1f"},
    "isolation": {"what": "", "ms": ".2f", "isolated, ms": ".2f"},
}
EXPORTED_SHAPES = (SHAPES[0], SHAPES[1], Shape(1, (64, 64), 1, 32), SHAPES[3])
DIVIDED_SHAPES = (SHAPES[0], SHAPES[1], Shape(16, (32, 32), 1, 64, ALL), SHAPES[3])
PASSES = {"forward": False, "training": True}
STARTS = 7  # measurements of the start-up time
IMPORTS = "import numpy, onnxruntime"  # the least that `mdlstm infer` has to import
COMPILE = """
import os, torch
from mdlstm_tk import MDLSTM
torch.set_num_threads(1)
MDLSTM(1, 4, cell={!r}).precompile(training={}, states={})
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
    ratios = {name: ratio(times["layer"], series) for name, series in times.items()}
    flops, ms = shape.flops(training), milliseconds(times["layer"])
    return {
        "N, grid, C, n": str(shape),
        "threads": threads,
        "pass": pass_name,
        "ms": ms,
        "GFLOP/s": flops / ms / 1e6,
        **{f"÷ {name}": value for name, value in ratios.items()},
        "per FLOP": ratios["nn.LSTM"] * shape.lstm_flops(training) / flops,
        "peak MiB": peak / 2**20,
    }


def runtime_row(shape: Shape, threads: int, form: str, seconds: float) -> Row:
    """A layer exported in a form, beside the contenders. A scan is measured as a file for any grid."""
    torch.manual_seed(0)
    runs, layer, x = contenders(shape, training=False)
    with tempfile.TemporaryDirectory() as folder, torch_threads(threads):
        grid = shape.grid if form == "unrolled" else None
        report = export_onnx(layer, Path(folder) / "layer.onnx", grid=grid, form=form)
        load = partial(Session, report.path, "cpu", threads=threads)
        loading = interleave({"load": lambda: load().close()}, 0)["load"]
        with load() as session:
            times = interleave({"runtime": partial(session, x.numpy()), **runs}, seconds)
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


@cfunc(f"void({', '.join(['int64'] * 12)})")
def _no_product(a, a_row, a_step, b, b_panel, b_step, depth, c, c_row, rows, columns, accumulate):  # type: ignore[no-untyped-def]
    return


@cfunc("void(int64, int64, int64, int64)")
def _no_cell(rows, units, spill, table):  # type: ignore[no-untyped-def]
    return


REPLACED = {"products": {"matmul": _no_product.address}, "cell": {"cell": _no_cell.address}}


def without(part: str, step: Step) -> Step:
    """The step with kernels that call a function that does nothing in place of a part."""

    def run() -> None:
        whole = dict(plans)
        plans.update({key: plan._replace(**REPLACED[part]) for key, plan in whole.items()})
        try:
            step()
        finally:
            plans.update(whole)

    step()  # makes the plans
    return run


def parts_row(shape: Shape, threads: int, pass_name: str, seconds: float) -> Row:
    """The shares of a layer's time. The rest is gathering operands, memory and Python."""
    layer = make_step(*make_layer(shape), PASSES[pass_name])
    with torch_threads(threads):
        steps = {"layer": layer, **{part: without(part, layer) for part in REPLACED}}
        times = {name: milliseconds(series) for name, series in interleave(steps, seconds).items()}
    shares = {part: 1 - times[part] / times["layer"] for part in REPLACED}
    labels = {"N, grid, C, n": str(shape), "pass": pass_name, "ms": times["layer"]}
    return {**labels, **shares, "rest": 1 - sum(shares.values())}


def compiling_rows() -> Iterator[Row]:
    """Fresh processes, each after those above it have filled the cache of kernels. The time of a second
    process, which takes everything from the cache, is subtracted."""
    with tempfile.TemporaryDirectory() as folder:
        for label, options in COMPILED.items():
            code = COMPILE.format(*options)
            first, second = (float(python("-c", code, NUMBA_CACHE_DIR=folder)) for _ in range(2))
            yield {"what a process runs first": label, "s": first - second}


def isolation_rows(seconds: float) -> Iterator[Row]:
    """The start of a session, and calls of small and large grids."""
    with tempfile.TemporaryDirectory() as folder:
        path = export_onnx(MDLSTM(1, 16), Path(folder) / "model.onnx", form="scan").path

        def row(what: str, plain: Step, isolated: Step) -> Row:
            times = interleave({"ms": plain, "isolated, ms": isolated}, seconds, least=STARTS)
            return {"what": what, **{name: milliseconds(series) for name, series in times.items()}}

        start = partial(Session, path, "cpu")
        yield row("start", lambda: start().close(), lambda: start(isolated=True).close())
        with start() as plain, start(isolated=True) as isolated:
            for batch, extent in ((1, 8), (64, 8), (1, 64), (16, 64)):
                x = np.zeros((batch, extent, extent, 1), np.float32)
                yield row(f"{batch}, {extent}x{extent}", partial(plain, x), partial(isolated, x))


def rows_of(options: argparse.Namespace) -> Iterator[Row]:
    """The rows of a table."""
    if options.table == "compiling":
        yield from compiling_rows()
    elif options.table == "isolation":
        yield from isolation_rows(options.seconds)
    else:
        # One thread by default, but for the layer: idle threads of ONNX Runtime spin for a while after a
        # run, which slows down the next measurement.
        cores = {torch.get_num_threads()} if options.table == "layer" else set()
        shapes, variants, measure = {
            "layer": (SHAPES, PASSES, layer_row),
            "runtime": (EXPORTED_SHAPES, FORMS, runtime_row),
            "parts": (DIVIDED_SHAPES, PASSES, parts_row),
        }[options.table]
        for case in product(options.shape or shapes, options.threads or sorted({1, *cores}), variants):
            print(*case, sep="; ", file=sys.stderr)
            yield measure(*case, options.seconds)


def main(words: Sequence[str] | None = None) -> None:
    parser = argument_parser(__doc__)
    parser.add_argument("table", nargs="?", choices=FORMATS, default="layer")
    parser.add_argument("--shape", type=Shape.parse, action="append", metavar="N,GRID,C,n")
    parser.add_argument("--threads", type=int, action="append", help="1, and all cores for the layer")
    parser.add_argument("--seconds", type=float, default=2.0, help="seconds to measure each row for")
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    options = parser.parse_args(words)
    rows, formats = list(rows_of(options)), FORMATS[options.table]
    if options.json:
        print(json.dumps(rows))
        return
    texts = [[format(row[column], spec) for column, spec in formats.items()] for row in rows]
    print(markdown(tuple(formats), texts, 1))
    if options.table == "runtime":
        print(f"\n{cold_start()}")


if __name__ == "__main__":
    main()
