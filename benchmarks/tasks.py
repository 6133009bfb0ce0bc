"""Write docs/tasks/: what the built-in tasks come to, as measured here.

    python benchmarks/tasks.py                     # all of them: hours on two cores
    python benchmarks/tasks.py digits --runs runs  # one; runs/digits is read if it is there, else made

It runs `mdlstm compare`, so that whoever doubts a number can run the same.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
from pathlib import Path
from statistics import mean
from typing import Any

from performance import markdown

from mdlstm_tk.training import default_config

DOCS = Path(__file__).parent.parent / "docs"
PAGES = {  # name: (tasks, seeds)
    "digits": (("digits",), 5),
    "digit-strings": (("digit-strings",), 3),
    "textures": (("textures",), 3),
    "gaussian-field": (("gaussian-field", "gaussian-field-anisotropic"), 3),
}
SHARES = ("error", "character_error", "string_error")  # shown in per cent


def results(folder: Path, task: str, seeds: int) -> dict[str, Any]:
    """What `mdlstm compare` wrote into the folder, which it does now if it has not yet."""
    summary = folder / "summary.json"
    if not summary.is_file():
        command = ["compare", "--task", task, "--seeds", str(seeds), "-o", str(folder)]
        subprocess.run([sys.executable, "-m", "mdlstm_tk", *command], check=True, stdout=subprocess.DEVNULL)
    found: dict[str, Any] = json.loads(summary.read_text(encoding="utf-8"))
    return found


def table(entries: dict[str, Any]) -> str:
    """Errors of each network on test data: mean over the seeds, lowest and highest."""
    errors = list(next(iter(entries.values()))["errors"])
    names = [f"{e.replace('_', ' ')}, %" if e in SHARES else e.replace("_", " ") for e in errors]
    columns = [
        "network",
        "units",
        "parameters",
        *(c for n in names for c in (n, "lowest–highest")),
        "s a run",
    ]
    rows = []
    for network, entry in entries.items():
        row = [network, *(f"{entry[key]:,}" if key in entry else "" for key in ("hidden", "parameters"))]
        for error in errors:
            scale, digits = (100, 2) if error in SHARES else (1, 4)
            values = [scale * value for value in entry["errors"].get(error, [])]
            shown = f"{min(values):.{digits}f}–{max(values):.{digits}f}" if values else ""
            row += [f"{mean(values):.{digits}f}" if values else "", shown]
        rows.append([*row, f"{mean(entry['seconds']):.0f}" if "seconds" in entry else ""])
    return markdown(columns, rows)


def section(task: str, entries: dict[str, Any], folder: Path, seeds: int) -> str:
    """A task's table and pictures, which are copied."""
    for name, source in (
        ("loss", folder / "loss.png"),
        ("examples", folder / f"{default_config(task).model}-0" / "prediction.png"),
    ):
        shutil.copyfile(source, DOCS / "images" / f"{task}-{name}.png")
    return (
        f"`mdlstm compare --task {task} --seeds {seeds}`\n\n{table(entries)}\n\n"
        f"![training loss](../images/{task}-loss.png)\n\n![examples](../images/{task}-examples.png)\n"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("names", nargs="*", metavar="NAME", help=", ".join(PAGES))
    parser.add_argument("--runs", type=Path, default=Path("runs/tasks"), help="where runs are or go")
    arguments = parser.parse_args()
    for name in arguments.names or PAGES:
        tasks, seeds = PAGES[name]
        page = DOCS / "tasks" / f"{name}.md"
        written, mark, _ = page.read_text(encoding="utf-8").partition("<!-- measured -->\n")
        if not mark:
            raise SystemExit(f"{page} has no line <!-- measured --> to write below")
        parts = []
        for task in tasks:
            folder = arguments.runs / task
            parts.append(section(task, results(folder, task, seeds), folder, seeds))
        page.write_text(written + mark + "\n" + "\n".join(parts), encoding="utf-8")
        print(page)


if __name__ == "__main__":
    main()
