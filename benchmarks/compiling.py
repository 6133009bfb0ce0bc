"""Processor time that compiling takes: fresh processes with an empty cache of kernels.

    python benchmarks/compiling.py                 # takes a minute

Each row is a fresh process, after the rows above it have filled the cache. The time of a second process,
which takes everything from the cache, is subtracted.
"""

from __future__ import annotations

import tempfile

from measuring import markdown, python

COLUMNS = ("what a process runs first", "s")
CALL = """
import os, torch
from mdlstm_tk import MDLSTM
torch.set_num_threads(1)
MDLSTM(1, 4, cell={cell!r}).precompile(training={training}, states={states})
print(sum(os.times()[:2]))
"""
ROWS = (
    ("inference, first cell", "graves", False, False),
    ("training, the same cell", "graves", True, False),
    ("training with states, the same cell", "graves", True, True),
    ("inference, another cell", "stable", False, False),
    ("training, that cell", "stable", True, False),
    ("training with states, slstm", "slstm", True, True),
)


def table() -> list[list[str]]:
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for label, cell, training, states in ROWS:
            code = CALL.format(cell=cell, training=training, states=states)
            first, second = (float(python("-c", code, NUMBA_CACHE_DIR=folder)) for _ in range(2))
            rows.append([label, f"{first - second:.1f}"])
    return rows


if __name__ == "__main__":
    print(markdown(COLUMNS, table(), 1))
