"""Write the results of the built-in tasks into docs/tasks/.

    python benchmarks/tasks.py                     # all tasks; takes hours on two cores
    python benchmarks/tasks.py digits --runs runs  # one page; existing results in runs/digits are reused

The results are those of `mdlstm compare`, so that every figure can be reproduced with that command. It gets
options that are unknown here, such as `--steps=10`.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from statistics import mean
from typing import Any

from measuring import ROOT, add_names, argument_parser, markdown

from mdlstm_tk.training import default_config

PAGES = {  # name of the page → (tasks, seeds)
    "digits": (("digits",), 5),
    "digit-strings": (("digit-strings",), 3),
    "textures": (("textures",), 3),
    "gaussian-field": (("gaussian-field", "gaussian-field-anisotropic"), 3),
}
PERCENTAGES = ("error", "character_error", "word_error", "string_error")  # printed in per cent
MARK = "<!-- measured -->\n"  # everything below this line of a page is generated


def load_results(folder: Path, command: str, further: Sequence[str]) -> dict[str, Any]:
    """Return the summary that `mdlstm compare` wrote into a folder, after running it if there is none."""
    summary = folder / "summary.json"
    if not summary.is_file():
        words = ["-m", *command.replace("mdlstm", "mdlstm_tk", 1).split(), "-o", str(folder), "--force"]
        subprocess.run([sys.executable, *words, *further], check=True, cwd=ROOT, stdout=subprocess.DEVNULL)
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


def main(words: Sequence[str] | None = None) -> None:
    parser = argument_parser(__doc__)
    add_names(parser, "PAGE", PAGES)
    parser.add_argument("--runs", type=Path, default=Path("runs/tasks"), help="folder of results")
    parser.add_argument("--docs", type=Path, default=ROOT / "docs", help="folder of the pages")
    options, further = parser.parse_known_args(words)
    for name in options.names:
        tasks, seeds = PAGES[name]
        page = options.docs / "tasks" / f"{name}.md"
        prose, mark, _ = page.read_text(encoding="utf-8").partition(MARK)
        if not mark:
            raise SystemExit(f"{page} has no line {MARK.strip()}, below which the results belong")
        for task in tasks:
            command = f"mdlstm compare --task {task} --seeds {seeds} --import benchmarks/rival_networks.py"
            folder = options.runs.resolve() / task
            results = load_results(folder, command, further)
            mark += f"\n`{command}`\n\n{format_table(results)}\n"
            best = folder / f"{default_config(task).model}-0"
            for picture, source in (("loss", folder / "loss.png"), ("examples", best / "prediction.png")):
                shutil.copyfile(source, options.docs / "images" / f"{task}-{picture}.png")
                alt = "training loss" if picture == "loss" else picture
                mark += f"\n![{alt}](../images/{task}-{picture}.png)\n"
        page.write_text(prose + mark, encoding="utf-8")
        print(page)


if __name__ == "__main__":
    main()
