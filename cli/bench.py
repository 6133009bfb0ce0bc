"""`mdlstm bench`."""

from __future__ import annotations

import os
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from mdlstm_tk.cli.console import note, print_json, table
from mdlstm_tk.cli.options import Device, Json
from mdlstm_tk.errors import InputError, require

if TYPE_CHECKING:
    from mdlstm_tk.benchmark import Measurement, Shape
    from mdlstm_tk.export.benchmark import RuntimeMeasurement

COLUMNS = (
    *("N, grid, C, n", "threads", "pass", "ms", "GFLOP/s", "÷ floor", "÷ nn.LSTM", "per FLOP"),
    *("÷ torch backend", "peak MiB"),
)
RUNTIME_COLUMNS = (
    *("N, grid, C, n", "threads", "form", "ms", "÷ floor", "÷ nn.LSTM", "÷ layer in torch"),
    *("load ms", "export s", "KiB", "max error"),
)


def bench(
    shape: Annotated[
        list[str] | None,
        typer.Option(
            metavar="N,GRID,C,n",
            help="Shape to measure, such as 16,32x32,1,64. Repeatable.",
            show_default="a table of shapes",
        ),
    ] = None,
    threads: Annotated[
        list[int] | None,
        typer.Option(
            min=1,
            help="Number of CPU threads. Repeatable.",
            show_default="1 and all cores; with --runtime 1",
        ),
    ] = None,
    device: Device = "auto",
    dtype: Annotated[
        Literal["float32", "float64", "float16", "bfloat16", "int8"],
        typer.Option(help="Data type of parameters and input; with --runtime float32, float16 or int8."),
    ] = "float32",
    seconds: Annotated[float, typer.Option(min=0, help="Seconds to measure each row for.")] = 2.0,
    runtime: Annotated[
        bool, typer.Option("--runtime", help="Measure exported layers under ONNX Runtime.")
    ] = False,
    json: Json = False,
) -> None:
    """Measure the speed of the layer, or of its exports, on this machine.

    Each row gives the time of one call, and its ratios to other networks that
    take turns with it in one process. The floor is the layer's matrix products
    alone, computed by torch. nn.LSTM runs over the same number of positions,
    which takes fewer operations; "per FLOP" divides each time by its operations.
    """
    os.environ.setdefault("KINETO_LOG_LEVEL", "6")  # torch's profiler, which measures the peak memory,
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")  # would print a banner for each row
    torch = require("torch", "train")
    from mdlstm_tk.benchmark import Shape

    shapes = [Shape.parse(text) for text in shape or []]
    if runtime:
        # One thread by default: idle threads of ONNX Runtime spin for a while after a run, which slows down
        # whatever is measured next.
        _bench_runtime(shapes, threads or [1], device, dtype, seconds, json)
    elif dtype == "int8":
        raise InputError("--dtype int8 needs --runtime: only exported layers compute in int8")
    else:
        counts = threads or sorted({1, torch.get_num_threads()})
        _bench_layer(shapes, counts, device, dtype, seconds, json)


def _bench_layer(
    shapes: list[Shape], counts: list[int], device: str, dtype: str, seconds: float, json: bool
) -> None:
    import torch

    from mdlstm_tk.benchmark import SHAPES, measure_layers
    from mdlstm_tk.training.distributed import pick_device

    target = str(pick_device(device))
    if target != "cpu":
        counts = counts[-1:]
    rows = measure_layers(shapes or SHAPES, counts, seconds, target, getattr(torch, dtype), on_start=note)
    if json:
        print_json([asdict(row) for row in rows])
        return
    title = f"{dtype} on {rows[0].device}, torch {torch.__version__}"
    table(COLUMNS, [layer_row(row) for row in rows], title)


def _bench_runtime(
    shapes: list[Shape], counts: list[int], device: str, dtype: Any, seconds: float, json: bool
) -> None:
    require("onnx", "train")
    onnxruntime = require("onnxruntime", "cpu")
    from mdlstm_tk.export.benchmark import RUNTIME_SHAPES, measure_cold_start, measure_exports

    rows = measure_exports(shapes or RUNTIME_SHAPES, counts, seconds, device, dtype, note)
    note("cold start of `mdlstm infer`")
    infer, imports = measure_cold_start()
    if json:
        start = {"infer_seconds": infer, "imports_seconds": imports, "ratio": infer / imports}
        print_json({"layers": [asdict(row) for row in rows], "cold_start": start})
        return
    title = f"{dtype} on {rows[0].device}, ONNX Runtime {onnxruntime.__version__}"
    table(RUNTIME_COLUMNS, [runtime_row(row) for row in rows], title)
    note(
        f"A whole `mdlstm infer` takes {infer:.2f} s, "
        f"{infer / imports:.2f} times as long as `python -c 'import numpy, onnxruntime'`"
    )


def layer_row(row: Measurement) -> list[str]:
    """Format a measurement of the layer for the table."""
    return [
        row.shape,
        str(row.threads),
        "training" if row.training else "forward",
        f"{row.seconds * 1e3:.2f}",
        f"{row.gflops:.1f}",
        f"{row.to_floor:.2f}",
        f"{row.to_lstm:.2f}",
        f"{row.to_lstm_per_flop:.2f}",
        f"{row.to_torch_backend:.2f}",
        f"{row.peak_bytes / 2**20:.1f}",
    ]


def runtime_row(row: RuntimeMeasurement) -> list[str]:
    """Format a measurement of an exported layer for the table."""
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
