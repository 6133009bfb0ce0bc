"""Write the results of the built-in tasks into docs/tasks/.

    python benchmarks/tasks.py                     # all tasks; takes hours on two cores
    python benchmarks/tasks.py digits --runs runs  # one task; existing results in runs/digits are reused

The results are those of `mdlstm compare`, so that anybody can reproduce a figure with that command.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path
from statistics import mean
from typing import Any

from measuring import ROOT, argument_parser, markdown

from mdlstm_tk.training import default_config

RIVALS = ROOT / "benchmarks/rival_networks.py"
DOCS = ROOT / "docs"
PAGES = {  # name of the page → (tasks, seeds)
    "digits": (("digits",), 5),
    "digit-strings": (("digit-strings",), 3),
    "textures": (("textures",), 3),
    "gaussian-field": (("gaussian-field", "gaussian-field-anisotropic"), 3),
}
PERCENTAGES = ("error", "character_error", "word_error", "string_error")  # printed in per cent
MARK = "<!-- measured -->\n"  # everything below this line of a page is generated


def load_results(folder: Path, task: str, seeds: int) -> dict[str, Any]:
    """Return the summary that `mdlstm compare` wrote into a folder, after running it if there is none."""
    summary = folder / "summary.json"
    if not summary.is_file():
        command = ["compare", "--task", task, "--seeds", str(seeds), "-o", str(folder), "--force"]
        command += ["--import", str(RIVALS)]
        subprocess.run([sys.executable, "-m", "mdlstm_tk", *command], check=True, stdout=subprocess.DEVNULL)
    results: dict[str, Any] = json.loads(summary.read_text(encoding="utf-8"))
    return results


def format_table(results: dict[str, Any]) -> str:
    """Format the test errors of each network: mean, lowest and highest over the seeds."""
    metrics = list(next(iter(results.values()))["errors"])
    columns = ["network", "units", "parameters"]
    for metric in metrics:
        unit = ", %" if metric in PERCENTAGES else ""
        columns += [metric.replace("_", " ") + unit, "lowest–highest"]
    columns.append("s a run")
    rows = []
    for network, entry in results.items():
        row = [network, *(f"{entry[key]:,}" if key in entry else "" for key in ("hidden", "parameters"))]
        for metric in metrics:
            scale, digits = (100, 2) if metric in PERCENTAGES else (1, 4)
            values = [scale * value for value in entry["errors"].get(metric, [])]
            if values:
                row += [f"{mean(values):.{digits}f}", f"{min(values):.{digits}f}–{max(values):.{digits}f}"]
            else:
                row += ["", ""]
        rows.append([*row, f"{mean(entry['seconds']):.0f}" if "seconds" in entry else ""])
    return markdown(columns, rows)


def write_section(task: str, results: dict[str, Any], folder: Path, seeds: int) -> str:
    """Copy the pictures of a task into the docs, and return the task's section of the page."""
    pictures = {
        "loss": folder / "loss.png",
        "examples": folder / f"{default_config(task).model}-0" / "prediction.png",
    }
    for name, source in pictures.items():
        shutil.copyfile(source, DOCS / "images" / f"{task}-{name}.png")
    return (
        f"`mdlstm compare --task {task} --seeds {seeds} --import benchmarks/rival_networks.py`\n\n"
        f"{format_table(results)}\n\n"
        f"![training loss](../images/{task}-loss.png)\n\n![examples](../images/{task}-examples.png)\n"
    )


def main() -> None:
    parser = argument_parser(__doc__)
    parser.add_argument("names", nargs="*", metavar="NAME", choices=PAGES, help=", ".join(PAGES))
    parser.add_argument(
        "--runs",
        type=Path,
        default=Path("runs/tasks"),
        help="Folder that results are read from, or written to if they are missing.",
    )
    arguments = parser.parse_args()
    for name in arguments.names or PAGES:
        tasks, seeds = PAGES[name]
        page = DOCS / "tasks" / f"{name}.md"
        prose, mark, _ = page.read_text(encoding="utf-8").partition(MARK)
        if not mark:
            raise SystemExit(f"{page} has no line {MARK.strip()}, below which the results belong")
        sections = []
        for task in tasks:
            folder = arguments.runs / task
            sections.append(write_section(task, load_results(folder, task, seeds), folder, seeds))
        page.write_text(prose + mark + "\n" + "\n".join(sections), encoding="utf-8")
        print(page)


if __name__ == "__main__":
    main()
