"""Steps of `mdlstm train` with one thread, with two, and with two processes of one thread each.

    python benchmarks/training.py                        # takes ten minutes on an idle machine
    python benchmarks/training.py --task digits --rounds 5

Each figure is that of new processes, the median of rounds in which all variants of a task take turns;
compiling and validating do not count.
"""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
from measuring import argument_parser, markdown, python
from PIL import Image, ImageDraw, ImageFont

from mdlstm_tk.training import Run

COLUMNS = ("task", "steps/s, 1 thread", "2 threads", "2 processes")
SEGMENTS, EXTENT = 48, 128  # images of the task "segments", and their height and width
LINES = 256  # of the task "lines"
TASKS: dict[str, dict[str, Any]] = {  # settings; data is written to a folder
    "diagonal": {"task": "diagonal", "steps": 2000},
    "digits": {"task": "digits", "steps": 100},
    "textures": {"task": "textures", "steps": 50},
    "lines": {"task": "transcribe", "precision": "bf16", "steps": 30},
    "segments": {"task": "segment", "model": "md", "steps": 12},
}
VARIANTS = (1, 1), (1, 2), (2, 1)  # processes, and the threads of each


def steps_a_second(settings: dict[str, Any], processes: int, threads: int) -> float:
    """Those of a new training, by the clock, without validations and the first step."""
    words: list[Any] = [word for name, value in settings.items() for word in (f"--{name}", value)]
    with tempfile.TemporaryDirectory() as folder:
        run = Path(folder, "run")
        words += ["--processes", processes, "--device", "cpu", "-o", run]
        python("-m", "mdlstm_tk", "train", *words, OMP_NUM_THREADS=str(threads))
        return float(Run(run).read_result()["steps_per_second"])


def write_lines(folder: Path) -> None:
    """Write images of lines of text, two to eight words, and `labels.tsv`."""
    rng, font = np.random.default_rng(0), ImageFont.load_default(24)
    words, labels = str(__doc__).split(), []
    for k in range(LINES):
        text = " ".join(rng.choice(words, rng.integers(2, 9)))
        image = Image.new("L", (round(font.getlength(text)) + 12, 40), "white")
        ImageDraw.Draw(image).text((6, 6), text, fill="black", font=font)
        image.save(folder / f"{k}.png")
        labels.append(f"{k}.png\t{text}\n")
    (folder / "labels.tsv").write_text("".join(labels), encoding="utf-8")


def write_segments(folder: Path) -> None:
    """Write noisy squares of two classes."""
    rng = np.random.default_rng(0)
    y = rng.integers(0, 2, (SEGMENTS, EXTENT // 16, EXTENT // 16)).repeat(16, 1).repeat(16, 2)
    np.savez(folder / "train.npz", x=(y + rng.normal(0, 1, y.shape)).astype(np.float32), y=y)


def row_of(task: str, rounds: int) -> list[str]:
    """A row of COLUMNS."""
    with tempfile.TemporaryDirectory() as folder:
        settings = dict(TASKS[task])
        if write := {"lines": write_lines, "segments": write_segments}.get(task):
            write(Path(folder))
            settings["data"] = folder
        rates = [[steps_a_second(settings, *variant) for variant in VARIANTS] for _ in range(rounds)]
    return [task, *(f"{median(each):.2f}" for each in zip(*rates, strict=True))]


def main(words: Sequence[str] | None = None) -> None:
    parser = argument_parser(__doc__)
    parser.add_argument("--task", action="append", choices=TASKS, help="a row; may be repeated")
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args(words)
    print(markdown(COLUMNS, [row_of(task, options.rounds) for task in options.task or TASKS]))


if __name__ == "__main__":
    main()
