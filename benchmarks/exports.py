"""Exported layers under ONNX Runtime, as multiples of their matrix products.

    python benchmarks/exports.py                   # takes two minutes on an otherwise idle machine
    python benchmarks/exports.py --seconds 0.2     # a rough look

The floor, which is the layer's matrix products by torch, and the exported layer take turns on one thread,
and its CPU time is measured. In each turn a contender runs four times: the first run finds the processor's
caches filled by the others, the last one finds its own data there.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Sequence
from itertools import product
from pathlib import Path

import torch
from contenders import ALL, Shape, floor, make_layer
from measuring import argument_parser, interleave, markdown, ort_session, ratio, torch_threads

from mdlstm_tk.export import export_onnx
from mdlstm_tk.export.lowering.lower import FORMS
from mdlstm_tk.runtime import Session

SHAPES = (
    Shape(1, (64, 64), 1, 32),
    Shape(1, (64, 64), 1, 32, ALL),
    Shape(1, (128, 128), 1, 16),
    Shape(1, (32, 32), 1, 32, ALL),
    Shape(16, (8, 8), 1, 16),
    Shape(8, (64, 64), 3, 32, ALL),
)
COLUMNS = ("N, grid, C, n", "form", "optimised", "`Session`", "`Session`, first run")
RUNS = 4  # in each turn


def ratios(shape: Shape, form: str, seconds: float) -> list[str]:
    """The last three columns. A scan is a file for any grid."""
    torch.manual_seed(0)
    layer, x = make_layer(shape)
    with tempfile.TemporaryDirectory() as folder, torch_threads(1):
        path = Path(folder) / "layer.onnx"
        export_onnx(layer, path, grid=shape.grid if form == "unrolled" else None, form=form)
        plain = ort_session(path)
        with Session(path, "cpu", threads=1) as session:
            steps = {
                "floor": floor(shape, training=False),
                "plain": lambda: plain.run(None, {"x": x.numpy()}),
                "session": lambda: session(x.numpy()),
            }
            times = interleave(steps, seconds, runs=RUNS, clock=time.process_time)
    shown = (("plain", -1), ("session", -1), ("session", 0))
    return [f"{ratio(times[name][:, run], times['floor'][:, run]):.2f}" for name, run in shown]


def main(words: Sequence[str] | None = None) -> None:
    parser = argument_parser(__doc__)
    parser.add_argument("--shape", action="append", type=Shape.parse, help="a shape; may be repeated")
    parser.add_argument("--seconds", type=float, default=4.0, help="seconds to measure each row for")
    options = parser.parse_args(words)
    cases = product(options.shape or SHAPES, FORMS)
    rows = [[str(shape), form, *ratios(shape, form, options.seconds)] for shape, form in cases]
    print(markdown(COLUMNS, rows, 2))


if __name__ == "__main__":
    main()
