"""Which form of an exported layer is faster: a table of unrolled files' times ÷ those of scan files.

    python benchmarks/forms.py                     # takes a minute and a half
    python benchmarks/forms.py --seconds 0         # a rough look

Both run in turn on one thread, and its CPU time is measured, so that other programs disturb little.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from itertools import product
from pathlib import Path

import numpy as np
import torch

from mdlstm_tk import MDLSTM
from mdlstm_tk.export import export_onnx
from mdlstm_tk.runtime import Session

EXTENTS = (8, 16, 32, 64)
LEAST_RUNS = 9


def ratio(unrolled: Session, scan: Session, x: np.ndarray, seconds: float) -> float:
    """The ratio of the median times of one call, measured for this much CPU time."""
    times: dict[Session, list[float]] = {unrolled: [], scan: []}
    end = time.thread_time() + seconds
    while time.thread_time() < end or len(times[scan]) < LEAST_RUNS:
        for session, measured in times.items():
            start = time.thread_time()
            session(x)
            measured.append(time.thread_time() - start)
    return statistics.median(times[unrolled]) / statistics.median(times[scan])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--seconds", type=float, default=1.0, help="CPU seconds for each entry")
    seconds = parser.parse_args().seconds
    print("| hidden units, directions, batch |", " | ".join(f"{e}×{e}" for e in EXTENTS), "|")
    print("| :--- |", " | ".join("---:" for _ in EXTENTS), "|")
    rng = np.random.default_rng(0)
    for (hidden, directions), batch in product([(16, 1), (64, 1), (16, "all")], [1, 16]):
        torch.manual_seed(0)
        layer = MDLSTM(1, hidden, cell="stable", directions=directions)
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "layer.onnx"
            scan = Session(export_onnx(layer, path, form="scan").path, device="cpu")
            ratios = []
            for extent in EXTENTS:
                unrolled = Session(export_onnx(layer, path, grid=(extent, extent)).path, device="cpu")
                x = rng.random((batch, extent, extent, 1), np.float32)
                ratios.append(f"{ratio(unrolled, scan, x, seconds):.2f}")
        print(f"| {hidden}, {directions}, {batch} |", " | ".join(ratios), "|", flush=True)


if __name__ == "__main__":
    main()
