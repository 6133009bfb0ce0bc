"""The peak memory of an exported scan on a large grid, for files of one checkout or of several.

    python benchmarks/memory.py                    # the files of this checkout; takes 2 GB
    python benchmarks/memory.py ../before .        # those of both, one after another

The file is a layer in all directions, for any grid and for one grid. A process of its own runs it once on
one thread, as `Session` of this checkout does, and another one as ONNX Runtime does without options. The
table has the most memory that the process had, including ONNX Runtime itself, x and y, which at the default
shape are 64 and 512 MiB. Files are not verified, since that would take longer than all the rest.
"""

from __future__ import annotations

import json
import tempfile
from pathlib import Path

from contenders import Shape
from measuring import ROOT, argument_parser, markdown, python

EXPORT = """
import sys, torch
from mdlstm_tk import MDLSTM
from mdlstm_tk.export import lower
from mdlstm_tk.export.capture import capture
height, width, channels, units = map(int, sys.argv[3:])
torch.manual_seed(0)
x = torch.zeros(2, height, width, channels)
free_axes = {1: 1, 2: 1} if sys.argv[2] == "any" else {}
model = lower(capture(MDLSTM(channels, units, directions="all").eval(), {"x": x}, {"x": free_axes}), "scan")
with open(sys.argv[1], "wb") as file:
    file.write(model.SerializeToString())
"""
RUN = """
import json, sys, time
import numpy as np, onnxruntime
from mdlstm_tk.runtime.providers import create_session
path, runner, *shape = sys.argv[1:]
if runner == "Session":
    with open(path, "rb") as file:
        session = create_session(file.read(), path, "cpu", threads=1, tf32=False).session
else:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(path, options, ["CPUExecutionProvider"])
x = np.random.default_rng(0).random(tuple(map(int, shape)), np.float32)
start = time.process_time()
y = session.run(None, {"x": x})[0]
seconds = time.process_time() - start
status = dict(line.split(":", 1) for line in open("/proc/self/status"))
print(json.dumps([int(status["VmHWM"].split()[0]) / 1024, seconds]))
"""
RUNNERS = ("Session", "plain")
COLUMNS = (
    "checkout",
    "grid of the file",
    "file KiB",
    *(f"{r} {u}" for r in RUNNERS for u in ("MiB", "CPU s")),
)


def measure(checkout: Path, shape: Shape, grid: str) -> list[str]:
    """One row of the table. `grid` is "any", or "fixed" for a file for one grid."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "scan.onnx"
        extents = (*shape.grid, shape.channels)
        python("-c", EXPORT, path, grid, *extents, shape.units, checkout=checkout)
        row = [str(checkout), grid, f"{path.stat().st_size / 1024:.0f}"]
        for runner in RUNNERS:
            peak, seconds = json.loads(python("-c", RUN, path, runner, shape.batch, *extents))
            row += [f"{peak:.0f}", f"{seconds:.1f}"]
    return row


def main() -> None:
    parser = argument_parser(__doc__)
    parser.add_argument("checkouts", type=Path, nargs="*", default=[ROOT], metavar="CHECKOUT")
    parser.add_argument("--shape", type=Shape.parse, default=Shape.parse("1,1024x1024,16,32"))
    arguments = parser.parse_args()
    rows = [measure(c, arguments.shape, grid) for c in arguments.checkouts for grid in ("any", "fixed")]
    print(markdown(COLUMNS, rows, 2))


if __name__ == "__main__":
    main()
