"""The CPU backends beside the floor (the matrix products alone) and `torch.nn.LSTM`.

    python benchmarks/floor.py                     # every shape, with 1 thread and with all
    python benchmarks/floor.py --only 32×32 --threads 2 --json

Ratios are medians over rounds in which all contenders ran in turn, so that they hold on a busy machine
too, where times do not. The measuring itself is in `mdlstm_tk.benchmark`.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence

import torch

from mdlstm_tk.benchmark import CONTENDERS, SHAPES, Measurement, measure


def table(measurements: Sequence[Measurement]) -> str:
    """Rows of (shape, threads), a pair of columns for each contender: forward ÷ floor, training ÷ floor."""
    found = {(m.shape, m.threads, m.contender, m.training): m for m in measurements}
    rows = list(dict.fromkeys((m.shape, m.threads) for m in measurements))
    names = list(dict.fromkeys(m.contender for m in measurements))
    lines = ["| N, grid, C, n | threads | " + " | ".join(f"{name}" for name in names) + " |"]
    lines.append("|---|---|" + "---|" * len(names))
    for shape, threads in rows:
        cells = []
        for name in names:
            forward, training = (found[shape, threads, name, kind] for kind in (False, True))
            if name == "floor":
                cells.append(f"{forward.seconds * 1e3:.2f} / {training.seconds * 1e3:.2f} ms")
            else:
                cells.append(f"{forward.ratio:.2f} / {training.ratio:.2f}")
        lines.append(f"| {shape} | {threads} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--threads", type=int, nargs="+", default=sorted({1, torch.get_num_threads()}))
    parser.add_argument("--seconds", type=float, default=2.0, help="for each shape, pass and thread count")
    parser.add_argument("--only", default="", help="shapes with this in their name")
    parser.add_argument("--contenders", nargs="+", default=CONTENDERS, choices=CONTENDERS)
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    results: list[Measurement] = []
    for shape in (shape for shape in SHAPES if arguments.only in str(shape)):
        for threads in arguments.threads:
            print(f"{shape} with {threads} thread(s)", file=sys.stderr)
            torch.set_num_threads(threads)
            results += measure(shape, arguments.contenders, arguments.seconds)
    print(json.dumps([m.as_dict() for m in results], indent=1) if arguments.json else table(results))


if __name__ == "__main__":
    main()
