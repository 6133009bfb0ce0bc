"""Write the tables of docs/performance.md, by scripts of this folder.

    python benchmarks/performance.py               # all; takes half an hour on an otherwise idle machine
    python benchmarks/performance.py load exports  # some of them

Above each table stands the command that prints it, so that anyone who doubts a figure can run the same one.
"""

from __future__ import annotations

import os
import platform
from collections.abc import Sequence
from datetime import date
from importlib.metadata import version
from pathlib import Path

from measuring import ROOT, add_names, argument_parser, processor, python, write_between_markers

LOAD_SHAPES = ("16,32x32,64,64", "4,64x64,32,32", "1,128x128,32,32", "1,512x512,32,32")
COMMANDS = {  # section of the page → script and options
    "layer": "bench.py --seconds 2",
    "ragged": "ragged.py",
    "training": "training.py",
    "load": f"load.py --seconds 1.5 {' '.join(f'--shape {shape}' for shape in LOAD_SHAPES)}",
    "compiling": "bench.py compiling",
    "runtime": "bench.py runtime --seconds 2",
    "exports": "bench.py exports --seconds 4",
    "rivals": "rivals.py",
}


def machine() -> str:
    """A sentence on the machine and the versions."""
    python_version, today = platform.python_version(), date.today().isoformat()
    torch, onnxruntime, numba = map(version, ("torch", "onnxruntime", "numba"))
    return (
        f"Measured on {today} on {processor()}, {os.cpu_count()} cores, {platform.system()}, with Python "
        f"{python_version},\ntorch {torch}, ONNX Runtime {onnxruntime} and Numba {numba}."
    )


def main(words: Sequence[str] | None = None) -> None:
    parser = argument_parser(__doc__)
    add_names(parser, "SECTION", COMMANDS)
    parser.add_argument("--page", type=Path, default=ROOT / "docs/performance.md")
    options = parser.parse_args(words)
    for name in options.names:
        script, *arguments = COMMANDS[name].split()
        output = python(ROOT / "benchmarks" / script, *arguments).strip()
        text = f"`python benchmarks/{COMMANDS[name]}`\n\n{output}"
        write_between_markers(options.page, name, text)
    if options.names == list(COMMANDS):
        write_between_markers(options.page, "machine", machine())


if __name__ == "__main__":
    main()
