"""Measure the cost of isolation: the start of a session, and calls of small and large grids.

    python benchmarks/isolation.py

Both ways alternate within one run. Numbers are medians.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median

import numpy as np
import torch

from mdlstm_tk import MDLSTM
from mdlstm_tk.export import export_onnx
from mdlstm_tk.runtime import Session

SIZES = ((1, 8), (64, 8), (1, 64), (16, 64))  # batch and extent
ROUNDS = 30


def seconds(function: Callable[[], object]) -> float:
    start = time.perf_counter()
    function()
    return time.perf_counter() - start


def main() -> None:
    torch.manual_seed(0)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.onnx"
        export_onnx(MDLSTM(1, 16), path, torch.zeros(1, 8, 8, 1), form="scan")
        for isolated in (False, True):
            start = median(
                seconds(lambda i=isolated: Session(path, "cpu", isolated=i).close()) for _ in range(9)
            )
            print(f"start{', isolated' if isolated else ''}: {start * 1e3:.0f} ms")
        with Session(path, "cpu") as here, Session(path, "cpu", isolated=True) as there:
            for batch, extent in SIZES:
                x = np.random.default_rng(0).random((batch, extent, extent, 1), dtype=np.float32)
                rounds = [(seconds(lambda: here(x)), seconds(lambda: there(x))) for _ in range(ROUNDS)]  # noqa: B023
                times = [median(column) * 1e3 for column in zip(*rounds, strict=True)]
                print(f"{batch}, {extent}×{extent}: {times[0]:.2f} ms, isolated {times[1]:.2f} ms")


if __name__ == "__main__":
    main()
