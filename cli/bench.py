"""`mdlstm bench`."""

from __future__ import annotations

import os
from dataclasses import asdict
from itertools import product
from typing import TYPE_CHECKING, Annotated

import typer

from mdlstm_tk.cli.console import note, print_json, table
from mdlstm_tk.errors import InputError, require

if TYPE_CHECKING:
    from mdlstm_tk.benchmark.layer import Measurement, Shape
    from mdlstm_tk.export.benchmark import RuntimeMeasurement

COLUMNS = (
    *("N, grid, C, n", "threads", "pass", "ms", "GFLOP/s", "÷ floor", "÷ nn.LSTM", "per FLOP"),
    *("÷ unrolled", "peak MiB"),
)
RUNTIME_COLUMNS = (
    *("N, grid, C, n", "threads", "form", "ms", "÷ floor", "÷ nn.LSTM", "÷ layer in torch"),
    *("load ms", "export s", "KiB", "max error"),
)
DTYPES = ("float32", "float64", "float16", "bfloat16")


def bench(
    shape: Annotated[
        list[str] | None,
        typer.Option(metavar="N,GRID,C,n", help="Such as 16,32x32,1,64; repeatable. Else a table of them."),
    ] = None,
    threads: Annotated[
        list[int] | None, typer.Option(min=1, help="CPU threads; repeatable. Else 1 and all, or 1.")
    ] = None,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:N.")] = "auto",
    dtype: Annotated[str, typer.Option(help=", ".join(DTYPES) + ".")] = "float32",
    seconds: Annotated[float, typer.Option(min=0, help="To measure each row for.")] = 2.0,
    runtime: Annotated[
        bool, typer.Option("--runtime", help="Measure exported layers under ONNX Runtime.")
    ] = False,
    json: Annotated[bool, typer.Option("--json", help="Print the measurements as JSON.")] = False,
) -> None:
    """Measure how fast the layer is here: time, and ratios to what it is made of.

    The floor is the layer's matrix products alone, through torch. nn.LSTM runs over as many cells, which
    takes fewer operations, hence the ratio per FLOP too. All take turns within one process.
    """
    os.environ.setdefault("KINETO_LOG_LEVEL", "6")  # torch's profiler, which tells the peak of memory,
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")  # would announce itself with each row
    require("torch", "train")
    import torch

    from mdlstm_tk.benchmark.layer import Shape

    if dtype not in DTYPES:
        raise InputError(f"--dtype must be one of {', '.join(DTYPES)}, got '{dtype}'")
    shapes = [Shape.parse(text) for text in shape or []]
    if runtime:
        # One, since those of ONNX Runtime stay busy after a run, at the cost of whose turn comes next.
        _bench_runtime(shapes, threads or [1], device, seconds, json)
    else:
        counts = threads or sorted({1, torch.get_num_threads()})
        _bench_layer(shapes, counts, device, dtype, seconds, json)


def _bench_layer(
    shapes: list[Shape], counts: list[int], device: str, dtype: str, seconds: float, json: bool
) -> None:
    import torch

    from mdlstm_tk.benchmark.layer import SHAPES, measure
    from mdlstm_tk.training.distributed import pick_device

    target = str(pick_device(device))
    if target != "cpu":
        counts = counts[-1:]
    cases = list(product(shapes or SHAPES, counts, (False, True)))
    rows: list[Measurement] = []
    for shape, threads, training in cases:
        what = "forward and backward" if training else "forward"
        note(f"{len(rows) + 1}/{len(cases)}  {shape}  {what}, {_threads(threads)}")
        rows.append(measure(shape, training, seconds, threads, target, getattr(torch, dtype)))
    if json:
        print_json([asdict(row) for row in rows])
        return
    title = f"{dtype} on {rows[0].device}, torch {torch.__version__}"
    table(COLUMNS, [cells(row) for row in rows], title)


def _bench_runtime(shapes: list[Shape], counts: list[int], device: str, seconds: float, json: bool) -> None:
    require("onnx", "train")
    onnxruntime = require("onnxruntime", "cpu")
    from mdlstm_tk.export.benchmark import RUNTIME_SHAPES, measure_cold_start, measure_runtime
    from mdlstm_tk.export.lowering.lower import FORMS

    cases = list(product(shapes or RUNTIME_SHAPES, counts, FORMS))
    rows: list[RuntimeMeasurement] = []
    for shape, threads, form in cases:
        note(f"{len(rows) + 1}/{len(cases)}  {shape}  {form}, {_threads(threads)}")
        rows.append(measure_runtime(shape, form, seconds, threads, device))
    note("cold start of `mdlstm infer`")
    infer, imports = measure_cold_start()
    if json:
        start = {"infer_seconds": infer, "imports_seconds": imports, "ratio": infer / imports}
        print_json({"layers": [asdict(row) for row in rows], "cold_start": start})
        return
    title = f"float32 on {rows[0].device}, ONNX Runtime {onnxruntime.__version__}"
    table(RUNTIME_COLUMNS, [runtime_cells(row) for row in rows], title)
    note(
        f"mdlstm infer, from the shell and back: {infer:.2f} s, "
        f"{infer / imports:.2f} times `python -c 'import numpy, onnxruntime'`"
    )


def _threads(count: int) -> str:
    return "1 thread" if count == 1 else f"{count} threads"


def cells(row: Measurement) -> list[str]:
    """A measurement as the table shows it."""
    return [
        row.shape,
        str(row.threads),
        "training" if row.training else "forward",
        f"{row.seconds * 1e3:.2f}",
        f"{row.gflops:.1f}",
        f"{row.to_floor:.2f}",
        f"{row.to_lstm:.2f}",
        f"{row.to_lstm_per_flop:.2f}",
        f"{row.to_unrolled:.2f}",
        f"{row.peak_bytes / 2**20:.1f}",
    ]


def runtime_cells(row: RuntimeMeasurement) -> list[str]:
    """A measurement as the table shows it."""
    return [
        row.shape,
        str(row.threads),
        row.form,
        f"{row.seconds * 1e3:.2f}",
        f"{row.to_floor:.2f}",
        f"{row.to_lstm:.2f}",
        f"{row.to_layer:.2f}",
        f"{row.load_seconds * 1e3:.1f}",
        f"{row.export_seconds:.1f}",
        f"{row.bytes / 1024:.0f}",
        f"{row.max_abs:.0e}",
    ]
