"""Write the tables of docs/performance.md, by scripts of this folder.

    python benchmarks/performance.py               # takes twelve minutes on an otherwise idle machine
    python benchmarks/performance.py --seconds 0.1 # a rough one, to see whether everything runs

Each table names the script that prints it, so that anyone who doubts a figure can run the same command.
"""

from __future__ import annotations

import platform
from collections.abc import Sequence
from contextlib import suppress
from datetime import date
from importlib.metadata import version
from pathlib import Path

import compiling
import exports
import load
import parts
import ragged
import rivals
import training
from bench import LAYER_COLUMNS, RUNTIME_COLUMNS, Row, measure_cold_start
from bench import table as bench_table
from measuring import ROOT, argument_parser, bench, markdown, write_between_markers

PAGE = ROOT / "docs/performance.md"


def directions(rows: Sequence[Row]) -> str:
    """The table of the ratios between all directions and one."""
    seconds = {(row["shape"], row["threads"], row["training"]): row["seconds"] for row in rows}
    suffix = ", directions=all"
    table = []
    for row in rows:
        if row["shape"].endswith(suffix):
            shape = row["shape"].removesuffix(suffix)
            ratio = row["seconds"] / seconds[shape, row["threads"], row["training"]]
            pass_name = "training" if row["training"] else "forward"
            table.append([shape, str(row["threads"]), pass_name, f"{ratio:.2f}"])
    return markdown(("N, grid, C, n", "threads", "pass", "ratio"), table, 1)


def machine(cores: int) -> str:
    """A sentence on the machine and the versions; the name of the processor from Linux if possible."""
    processor = platform.processor() or platform.machine()
    with suppress(OSError):
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        names = [line.partition(":")[2].strip() for line in lines if "model name" in line]
        processor = (names or [processor])[0]
    python, today = platform.python_version(), date.today().isoformat()
    torch, onnxruntime, numba = map(version, ("torch", "onnxruntime", "numba"))
    return (
        f"Measured on {today} on {processor}, {cores} cores, {platform.system()}, with Python {python},\n"
        f"torch {torch}, ONNX Runtime {onnxruntime} and Numba {numba}."
    )


def main() -> None:
    parser = argument_parser(__doc__)
    parser.add_argument("--seconds", type=float, default=2.0, help="seconds to measure each row for")
    seconds = parser.parse_args().seconds
    layer = bench("--seconds", str(seconds))
    exported = bench("--runtime", "--seconds", str(seconds))
    sections = {
        "machine": machine(cores=max(row["threads"] for row in layer)),
        "layer": f"`python benchmarks/bench.py --seconds {seconds:g}`\n\n"
        + bench_table(layer, LAYER_COLUMNS),
        "parts": markdown(parts.COLUMNS, parts.table(), 1),
        "directions": directions(layer),
        "ragged": markdown(ragged.COLUMNS, ragged.table(), 1),
        "ragged training": markdown(ragged.TRAINING_COLUMNS, ragged.training_table(), 1),
        "training": markdown(training.COLUMNS, training.table(), 1),
        "load": markdown(load.COLUMNS, load.table(seconds), 2),
        "compiling": markdown(compiling.COLUMNS, compiling.table(), 1),
        "runtime": f"`python benchmarks/bench.py --runtime --seconds {seconds:g}`\n\n"
        f"{bench_table(exported, RUNTIME_COLUMNS)}\n\n{measure_cold_start()}",
        "goals": markdown(exports.COLUMNS, exports.table(2 * seconds), 2),
        "operators": markdown(exports.PROFILE_COLUMNS, exports.profile_table(2 * seconds), 1),
        "networks": markdown(rivals.NETWORK_COLUMNS, rivals.network_table(), 2),
        "rivals": markdown(rivals.COLUMNS, rivals.table(), 2),
    }
    for name, text in sections.items():
        write_between_markers(PAGE, name, text)
    print(PAGE)


if __name__ == "__main__":
    main()
