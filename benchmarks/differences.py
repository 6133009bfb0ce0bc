"""Print how much faster or slower one checkout is than another, as a table in Markdown.

    python benchmarks/differences.py BASE HEAD

Both folders are checkouts. `bench.py` measures them in turns, on one thread, so that other programs slow
both. Ratios to the floor, the matrix products alone, are compared: they vary less than times.
"""

from __future__ import annotations

import json
from pathlib import Path
from statistics import median

from measuring import ROOT, argument_parser, markdown, python

SHAPES = ("16,8x8,1,16", "16,32x32,1,64", "1,128x128,1,32", "1,16x16x16,1,32")
NOTABLE = 0.05  # smaller changes are noise
COLUMNS = ("N, grid, C, n", "pass", "÷ floor before", "÷ floor now", "change")
Ratios = dict[tuple[str, str], list[float]]  # (shape, pass) → the ratio to the floor in each round


def comment(base: Ratios, head: Ratios) -> str:
    """The table, and a sentence on what stands out."""
    rows, notable = [], 0
    for key in (key for key in base if key in head):
        before, now = median(base[key]), median(head[key])
        change = now / before - 1
        apart = max(base[key]) < min(head[key]) or max(head[key]) < min(base[key])
        mark = "**" if abs(change) > NOTABLE and apart else ""
        notable += bool(mark)
        rows.append([*key, f"{before:.2f}", f"{now:.2f}", f"{mark}{change:+.0%}{mark}"])
    title = f"{notable} of {len(rows)} speeds changed" if notable else "No notable change in speed"
    note = f"A positive change is slower. Bold: more than {NOTABLE:.0%}, and the rounds do not overlap."
    return f"### {title}\n\n{markdown(COLUMNS, rows, 2)}\n\n{note}"


def main() -> None:
    parser = argument_parser(__doc__)
    parser.add_argument("base", type=Path, metavar="BASE")
    parser.add_argument("head", type=Path, metavar="HEAD")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", default="1", help="duration of each measurement")
    parser.add_argument("--shape", action="append", metavar="N,GRID,C,n")
    arguments = parser.parse_args()
    options = ["--json", "--threads", "1", "--seconds", arguments.seconds]
    options += [word for shape in arguments.shape or SHAPES for word in ("--shape", shape)]
    base: Ratios = {}
    head: Ratios = {}
    for number in range(arguments.rounds):
        turns = [(arguments.base, base), (arguments.head, head)]
        for folder, ratios in turns if number % 2 else reversed(turns):
            for row in json.loads(python(ROOT / "benchmarks/bench.py", *options, checkout=folder)):
                ratios.setdefault((row["N, grid, C, n"], row["pass"]), []).append(row["÷ floor"])
    print(comment(base, head))


if __name__ == "__main__":
    main()
