"""`mdlstm bench`."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import asdict
from typing import Annotated, Any, Literal

from mdlstm_tk.cli.console import note, print_json, table
from mdlstm_tk.cli.options import Device, Json, option
from mdlstm_tk.errors import require

Columns = Mapping[str, Callable[[Any], str]]  # title → the text of a cell

LAYER_COLUMNS: Columns = {  # of a `mdlstm_tk.benchmark.Measurement`
    "N, grid, C, n": lambda row: row.shape,
    "threads": lambda row: str(row.threads),
    "pass": lambda row: "training" if row.training else "forward",
    "ms": lambda row: f"{row.seconds * 1e3:.2f}",
    "GFLOP/s": lambda row: f"{row.gflops:.1f}",
    "÷ floor": lambda row: f"{row.to_floor:.2f}",
    "÷ nn.LSTM": lambda row: f"{row.to_lstm:.2f}",
    "per FLOP": lambda row: f"{row.to_lstm_per_flop:.2f}",
    "÷ torch backend": lambda row: f"{row.to_torch_backend:.2f}",
    "peak MiB": lambda row: f"{row.peak_bytes / 2**20:.1f}",
}
RUNTIME_COLUMNS: Columns = {  # of a `mdlstm_tk.export.benchmark.RuntimeMeasurement`
    "N, grid, C, n": lambda row: row.shape,
    "threads": lambda row: str(row.threads),
    "form": lambda row: row.form,
    "ms": lambda row: f"{row.seconds * 1e3:.2f}",
    "÷ floor": lambda row: f"{row.to_floor:.2f}",
    "÷ nn.LSTM": lambda row: f"{row.to_lstm:.2f}",
    "÷ layer in torch": lambda row: f"{row.to_layer:.2f}",
    "load ms": lambda row: f"{row.load_seconds * 1e3:.1f}",
    "export s": lambda row: f"{row.export_seconds:.1f}",
    "KiB": lambda row: f"{row.bytes / 1024:.0f}",
    "max error": lambda row: f"{row.max_abs:.0e}",
}

Dtype = Literal["float32", "float64", "float16", "bfloat16"]
DTYPE = "Data type of parameters and input; with --runtime float32 or float16."
RUNTIME = "Measure exported layers under ONNX Runtime, against networks in torch on the CPU in float32."
THREADS, THREADS_DEFAULT = "Number of CPU threads. Repeatable.", "1 and all cores; with --runtime 1"


def bench(
    shape: Annotated[
        list[str] | None,
        option(
            "Shape to measure, such as 16,32x32,1,64. Repeatable.",
            None,
            metavar="N,GRID,C,n",
            show_default="a table of shapes",
        ),
    ] = None,
    threads: Annotated[list[int] | None, option(THREADS, None, min=1, show_default=THREADS_DEFAULT)] = None,
    device: Device = "auto",
    dtype: Annotated[Dtype, option(DTYPE, None)] = "float32",
    seconds: Annotated[float, option("Seconds to measure each row for.", None, min=0)] = 2.0,
    runtime: Annotated[bool, option(RUNTIME, None, "--runtime")] = False,
    json: Json = False,
) -> None:
    """Measure the speed of the layer, or of its exports, on this machine.

    Each row gives the time of one call, and its ratios to other networks that
    take turns with it in one process. The floor is the layer's matrix products
    alone, computed by torch. nn.LSTM runs over the same number of positions,
    which takes fewer operations; "per FLOP" divides each time by its operations.
    The torch backend is the same layer in plain torch operations.
    """
    os.environ.setdefault("KINETO_LOG_LEVEL", "6")  # torch's profiler, which measures the peak memory,
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")  # would print a banner for each row
    torch = require("torch", "train")
    from mdlstm_tk.benchmark import SHAPES, Shape, measure_layers

    shapes = [Shape.parse(text) for text in shape or []]
    if not runtime:
        from mdlstm_tk.training.distributed import pick_device

        target = str(pick_device(device))
        all_threads = torch.get_num_threads()
        counts = threads or sorted({1, all_threads} if target == "cpu" else {all_threads})
        rows = measure_layers(shapes or SHAPES, counts, seconds, target, getattr(torch, dtype), note)
        _print(rows, LAYER_COLUMNS, f"{dtype} on {rows[0].device}, torch {torch.__version__}", json)
        return
    onnxruntime = require("onnxruntime", "cpu")
    from mdlstm_tk.export.benchmark import RUNTIME_SHAPES, measure_cold_start, measure_exports

    # One thread by default: idle threads of ONNX Runtime spin for a while after a run, which slows down
    # the next measurement.
    exports = measure_exports(shapes or RUNTIME_SHAPES, threads or [1], seconds, device, dtype, note)  # type: ignore[arg-type]
    note("cold start of `mdlstm infer`")
    infer, imports = measure_cold_start()
    start = {"infer_seconds": infer, "imports_seconds": imports, "ratio": infer / imports}
    title = f"{dtype} on {exports[0].device}, ONNX Runtime {onnxruntime.__version__}"
    _print(exports, RUNTIME_COLUMNS, title, json, cold_start=start)
    note(
        f"A whole `mdlstm infer` takes {infer:.2f} s, "
        f"{infer / imports:.2f} times as long as `python -c 'import numpy, onnxruntime'`"
    )


def _print(rows: list[Any], columns: Columns, title: str, json: bool, **extra: Any) -> None:
    """Print measurements as a table, or as JSON, with `extra` as further keys."""
    if json:
        records = [asdict(row) for row in rows]
        print_json({"layers": records, **extra} if extra else records)
    else:
        table(list(columns), [cells(row, columns) for row in rows], title)


def cells(row: Any, columns: Columns) -> list[str]:
    """The row of a table for a measurement."""
    return [text(row) for text in columns.values()]
