"""Measure the cost of isolation: the start of a session, and calls of small and large grids.

    python benchmarks/isolation.py

Both ways alternate within one run. Numbers are medians.
"""

from __future__ import annotations

import tempfile
from functools import partial
from pathlib import Path
from statistics import median

import numpy as np
import torch
from contenders import interleave

from mdlstm_tk import MDLSTM
from mdlstm_tk.export import export_onnx
from mdlstm_tk.runtime import Session

SIZES = ((1, 8), (64, 8), (1, 64), (16, 64))  # batch and extent
STARTS, CALLS = 9, 30


def main() -> None:
    torch.manual_seed(0)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.onnx"
        export_onnx(MDLSTM(1, 16), path, torch.zeros(1, 8, 8, 1), form="scan")
        starts = {
            "start": lambda: Session(path, "cpu").close(),
            "start, isolated": lambda: Session(path, "cpu", isolated=True).close(),
        }
        for name, series in interleave(starts, 0, least=STARTS).items():
            print(f"{name}: {median(series) * 1e3:.0f} ms")
        with Session(path, "cpu") as plain, Session(path, "cpu", isolated=True) as isolated:
            for batch, extent in SIZES:
                x = np.random.default_rng(0).random((batch, extent, extent, 1), dtype=np.float32)
                calls = {"plain": partial(plain, x), "isolated": partial(isolated, x)}
                times = interleave(calls, 0, least=CALLS)
                texts = (f"{name} {median(series) * 1e3:.2f} ms" for name, series in times.items())
                print(f"{batch}, {extent}×{extent}: {', '.join(texts)}")


if __name__ == "__main__":
    main()
