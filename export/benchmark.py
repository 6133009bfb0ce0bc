"""The speed of an exported layer under ONNX Runtime, compared with the layer's matrix products alone."""

from __future__ import annotations

import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import product
from pathlib import Path
from statistics import median

import numpy as np
import torch

from mdlstm_tk.benchmark import Shape, contenders, interleave, ratios_of, torch_threads
from mdlstm_tk.export.api import export_onnx
from mdlstm_tk.export.lowering.lower import FORMS
from mdlstm_tk.runtime import Session
from mdlstm_tk.runtime.choices import Dtype

RUNTIME_SHAPES = (
    Shape(16, (8, 8), 1, 16),
    Shape(16, (32, 32), 1, 64),
    Shape(1, (64, 64), 1, 32),
    Shape(1, (128, 128), 1, 32),
)
LOADS = 5  # measurements of the load time
STARTS = 7  # measurements of the start-up time
IMPORTS = "import numpy, onnxruntime"  # the least that `mdlstm infer` has to import


@dataclass(frozen=True)
class RuntimeMeasurement:
    """Times of an exported layer. All times are medians, in seconds.

    Attributes:
        shape: the layer and the input.
        form: "unrolled" or "scan".
        device: the device of ONNX Runtime.
        threads: number of threads that each contender may use.
        seconds: time of one call.
        to_floor: ratio to the layer's matrix products in torch.
        to_lstm: ratio to `torch.nn.LSTM` over the same number of positions.
        to_layer: ratio to the layer in torch.
        load_seconds: time from the content of the file to a session that is ready.
        export_seconds: time from the layer to the verified file.
        bytes: size of the file.
        max_abs: largest absolute error against float64, measured at the export.
    """

    shape: str
    form: str
    device: str
    threads: int
    seconds: float
    to_floor: float
    to_lstm: float
    to_layer: float
    load_seconds: float
    export_seconds: float
    bytes: int
    max_abs: float


def measure_exports(
    shapes: Sequence[Shape] = RUNTIME_SHAPES,
    thread_counts: Sequence[int] = (1,),
    seconds: float = 2.0,
    device: str = "cpu",
    dtype: Dtype = "float32",
    on_start: Callable[[str], None] = lambda _: None,
) -> list[RuntimeMeasurement]:
    """Export every shape in every ONNX form, and time it together with the contenders of
    `mdlstm_tk.benchmark`, with every number of threads.

    Args:
        shapes: the layers and their inputs.
        thread_counts: numbers of CPU threads.
        seconds: time for each row.
        device: "cpu", "cuda" or "cuda:1", for ONNX Runtime.
        dtype: as for `export_onnx`; the contenders are measured in float32.
        on_start: called before each measurement with what it is, such as
            "2/8  16, 8x8, 1, 16  scan, 1 thread".
    """
    cases = list(product(shapes, thread_counts, FORMS))
    rows = []
    for number, (shape, threads, form) in enumerate(cases, 1):
        plural = "" if threads == 1 else "s"
        on_start(f"{number}/{len(cases)}  {shape}  {form}, {threads} thread{plural}")
        torch.manual_seed(0)
        runs, layer, x = contenders(shape, training=False)
        with tempfile.TemporaryDirectory() as folder, torch_threads(threads):
            grid = shape.grid if form == "unrolled" else None  # a scan is measured as a file for any grid
            report = export_onnx(layer, Path(folder) / "layer.onnx", grid=grid, form=form, dtype=dtype)
            loads = []
            for _ in range(LOADS):
                start = time.perf_counter()
                session = Session(report.path, device, threads=threads)
                loads.append(time.perf_counter() - start)
            times = interleave({"runtime": partial(session, x.numpy()), **runs}, seconds)
            session.close()
        ratios = ratios_of(times, "runtime")
        rows.append(
            RuntimeMeasurement(
                shape=str(shape),
                form=form,
                device=session.device,
                threads=threads,
                seconds=median(times["runtime"]),
                to_floor=ratios["floor"],
                to_lstm=ratios["nn.LSTM"],
                to_layer=ratios["layer"],
                load_seconds=median(loads),
                export_seconds=report.seconds,
                bytes=report.bytes,
                max_abs=report.max_abs,
            )
        )
    return rows


def measure_cold_start() -> tuple[float, float]:
    """Measure the start-up time of `mdlstm infer`.

    Returns:
        Median seconds of a complete `mdlstm infer` on an 8×8 matrix, and of a process that only imports
        NumPy and ONNX Runtime.
    """
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
    return median(times["infer"]), median(times["imports"])
