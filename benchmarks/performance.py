"""Write docs/performance.md: `mdlstm bench`, `mdlstm bench --runtime` and `benchmarks/parts.py`, run here.

    python benchmarks/performance.py               # some five minutes; leave the machine alone meanwhile

It runs the commands, so that whoever doubts a number can run the same.
"""

from __future__ import annotations

import argparse
import json
import platform
import subprocess
import sys
from collections.abc import Sequence
from datetime import date
from importlib.metadata import version
from pathlib import Path
from typing import Any

import parts

from mdlstm_tk.benchmark.layer import Measurement
from mdlstm_tk.cli.bench import COLUMNS, RUNTIME_COLUMNS, cells, runtime_cells
from mdlstm_tk.export.benchmark import RuntimeMeasurement

PAGE = Path(__file__).parent.parent / "docs" / "performance.md"
TEXT = """\
# Performance

Measured on {today} on {processor}, {cores} cores, {system}; Python {python}, torch {torch}, ONNX
Runtime {onnxruntime}, Numba {numba}. Made by `python benchmarks/performance.py`, which runs the
commands below.

All contenders of a row take turns within one process, and a ratio is the median of the rounds' ratios:
ratios hold where times do not.

The **floor** is the layer's matrix products through torch and nothing else: forward one (N·P, C) × (C,
G·n), and one (rows, D·n) × (D·n, G·n) a wavefront into a reused buffer; backward one (rows, G·n) ×
(G·n, D·n) a wavefront and the two that give the weights' gradients. A ratio below 1 means that our own
products are faster than torch's on this processor. **nn.LSTM** runs over as many cells in sequences as
long as the grid has wavefronts; it has one recurrent product a cell where the layer has D, and four
gates where it has 3 + D, so *per FLOP* divides each time by the operations in its products.
**unrolled** is the same layer in plain torch operations, which is what runs where nothing is compiled.

## The layer

`mdlstm bench --seconds {seconds:g}`

{layer}

Peak memory is that of tensors during one call, beside input and weights. With `recompute` training
keeps 2·n numbers a cell and direction instead of (G + 2)·n.

## Where the time goes

`python benchmarks/parts.py`, one thread

{parts}

A part takes what the layer is faster by without it. The rest is gathering operands, fresh memory and
Python.

All directions at once, as a ratio to one direction's time:

{directions}

Directions share x and nothing else: each has products of its own, and where one direction already keeps
every core busy with them, four take four times as long. Where one cannot, on small grids, threads take
whole directions, and Python is paid for once.

GPUs are not measured yet: `mdlstm bench --device cuda` does it.

## Exported, under ONNX Runtime

`mdlstm bench --runtime --seconds {seconds:g}`

{runtime}

`mdlstm infer` on an 8×8 matrix, from the shell and back, takes {infer:.2f} s, {ratio:.2f} times `python
-c "import numpy, onnxruntime"`.
"""


def markdown(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table; the first column is text, the others numbers."""
    lines = [columns, [":---", *["---:"] * (len(columns) - 1)], *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def directions(rows: Sequence[Measurement]) -> str:
    """The table of ratios of shapes with all directions to the same with one."""
    seconds = {(row.shape, row.threads, row.training): row.seconds for row in rows}
    suffix = ", directions=all"
    table = [
        [
            row.shape.removesuffix(suffix),
            str(row.threads),
            "training" if row.training else "forward",
            f"{row.seconds / seconds[row.shape.removesuffix(suffix), row.threads, row.training]:.2f}",
        ]
        for row in rows
        if row.shape.endswith(suffix)
    ]
    return markdown(("N, grid, C, n", "threads", "pass", "ratio"), table)


def bench(*options: str) -> Any:
    """What `mdlstm bench --json` prints."""
    command = [sys.executable, "-m", "mdlstm_tk", "bench", "--json", *options]
    return json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout)


def processor() -> str:
    """Its name as Linux has it, or what Python can tell."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    return next(
        (line.partition(":")[2].strip() for line in lines if "model name" in line), platform.machine()
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--seconds", type=float, default=2.0, help="for each row")
    seconds = parser.parse_args().seconds
    layer = [Measurement(**row) for row in bench("--seconds", str(seconds))]
    runtime = bench("--runtime", "--seconds", str(seconds))
    exported = [RuntimeMeasurement(**row) for row in runtime["layers"]]
    text = TEXT.format(
        today=date.today().isoformat(),
        processor=processor(),
        cores=max(row.threads for row in layer),
        system=platform.system(),
        python=platform.python_version(),
        seconds=seconds,
        layer=markdown(COLUMNS, [cells(row) for row in layer]),
        parts=markdown(parts.COLUMNS, parts.table()),
        directions=directions(layer),
        runtime=markdown(RUNTIME_COLUMNS, [runtime_cells(row) for row in exported]),
        infer=runtime["cold_start"]["infer_seconds"],
        ratio=runtime["cold_start"]["ratio"],
        **{name: version(name) for name in ("torch", "onnxruntime", "numba")},
    )
    PAGE.write_text(text, encoding="utf-8")
    print(PAGE)


if __name__ == "__main__":
    main()
