"""Print how much faster or slower one checkout is than another, as a table in Markdown.

    python benchmarks/differences.py BASE HEAD

Both folders are checkouts. `mdlstm bench --json` runs in them in turns, so that whatever else the machine
does hits both. What is compared are ratios to the
floor, the matrix products alone, which vary less than times.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import median

SHAPES = ("16,8x8,1,16", "16,32x32,1,64", "1,128x128,1,32", "1,16x16x16,1,32")
NOTABLE = 0.05  # smaller changes are noise
Ratios = dict[tuple[str, str], list[float]]  # (shape, pass) → the ratio to the floor in each round


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("base", type=Path, metavar="BASE")
    parser.add_argument("head", type=Path, metavar="HEAD")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", default="1", help="duration of each measurement")
    arguments = parser.parse_args()
    base: Ratios = {}
    head: Ratios = {}
    for number in range(arguments.rounds):
        turns = [(arguments.base, base), (arguments.head, head)]
        for folder, ratios in turns if number % 2 else reversed(turns):
            for row in measure(folder, arguments.seconds):
                key = (str(row["shape"]), "training" if row["training"] else "forward")
                ratios.setdefault(key, []).append(float(str(row["to_floor"])))
    print(comment(base, head))


def measure(folder: Path, seconds: str) -> Sequence[Mapping[str, object]]:
    """The rows of `mdlstm bench --json` in a checkout, on one thread."""
    command = [sys.executable, "-m", "mdlstm_tk", "bench", "--json", "-q", "--threads", "1"]
    command += ["--seconds", seconds, *(word for shape in SHAPES for word in ("--shape", shape))]
    environment = {**os.environ, "PYTHONPATH": str(folder.resolve())}
    done = subprocess.run(command, capture_output=True, text=True, check=True, env=environment, cwd=folder)
    rows: Sequence[Mapping[str, object]] = json.loads(done.stdout)
    return rows


def comment(base: Ratios, head: Ratios) -> str:
    """The table, and a sentence on what stands out."""
    lines = ["| N, grid, C, n | pass | ÷ floor before | ÷ floor now | change |", "|---|---|---|---|---|"]
    notable = 0
    for key in base:
        if key in head:
            before, now = median(base[key]), median(head[key])
            change = now / before - 1
            apart = max(base[key]) < min(head[key]) or max(head[key]) < min(base[key])
            mark = "**" if abs(change) > NOTABLE and apart else ""
            notable += bool(mark)
            lines.append(f"| {key[0]} | {key[1]} | {before:.2f} | {now:.2f} | {mark}{change:+.0%}{mark} |")
    title = f"{notable} of {len(lines) - 2} speeds changed" if notable else "No notable change in speed"
    note = f"A positive change is slower. Bold: more than {NOTABLE:.0%}, and the rounds do not overlap."
    return "\n".join([f"### {title}", "", *lines, "", note])


if __name__ == "__main__":
    main()
