"""Steps of `mdlstm train` with one thread, with two, and with two processes of one thread each.

    python benchmarks/training.py                        # takes ten minutes on an idle machine
    python benchmarks/training.py --task digits --rounds 5

Each figure is that of new processes, the median of rounds in which all variants of a task take turns;
compiling and validating do not count. The shares are those of one thread: batches, sweeps and convolutions,
each with their backward passes; the rest is other layers, loss and optimizer.
"""

from __future__ import annotations

import json
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
from equal_time import Steps, clocked_rate
from measuring import argument_parser, markdown, python

from mdlstm_tk.training import configure

COLUMNS = (
    *("task", "steps/s, 1 thread", "2 threads", "ratio", "2 processes", "ratio"),
    *("batches", "sweeps", "convolutions"),
)
PROFILED_STEPS = 10
SEGMENTS, EXTENT = 48, 128  # images of the task "segments", and their height and width
TASKS: dict[str, tuple[int, dict[str, Any]]] = {  # steps, and settings; data is written to a folder
    "diagonal": (2000, {"task": "diagonal"}),
    "digits": (100, {"task": "digits"}),
    "textures": (50, {"task": "textures"}),
    "lines": (30, {"task": "transcribe", "precision": "bf16"}),
    "segments": (12, {"task": "segment", "model": "md"}),
}
VARIANTS = (1, 1), (1, 2), (2, 1)  # processes, and the threads of each


def main() -> None:
    parser = argument_parser(__doc__)
    parser.add_argument("--task", action="append", choices=TASKS, help="a row; may be repeated")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--shares", help="print the seconds of the parts of a training with these settings")
    arguments = parser.parse_args()
    if arguments.shares:
        print(json.dumps(parts(json.loads(arguments.shares))))
        return
    print(markdown(COLUMNS, table(arguments.task or tuple(TASKS), arguments.rounds), 1))


def table(tasks: Sequence[str] = tuple(TASKS), rounds: int = 3) -> list[list[str]]:
    """The rows of COLUMNS."""
    rows = []
    for task in tasks:
        with tempfile.TemporaryDirectory() as folder:
            steps, settings = TASKS[task][0], TASKS[task][1] | prepare(task, Path(folder))
            config = configure(**settings, steps=steps, device="cpu")
            rates = [[clocked_rate(config, *variant) for variant in VARIANTS] for _ in range(rounds)]
            one, two, processes = map(median, zip(*rates, strict=True))
            of = json.loads(python(__file__, "--shares", json.dumps(settings), OMP_NUM_THREADS="1"))
            shares = [f"{of[name] / of['all']:.0%}" for name in ("batches", "sweeps", "convolutions")]
            figures = [f"{one:.2f}", f"{two:.2f}", f"{two / one:.2f}"]
            rows.append([task, *figures, f"{processes:.2f}", f"{processes / one:.2f}", *shares])
    return rows


def prepare(task: str, folder: Path) -> dict[str, str]:
    """Write the data of a task to a folder, and return the setting that names them."""
    data = folder / "data"
    if task == "lines":
        from ragged import write_lines

        data.mkdir()
        write_lines(data)
        return {"data": str(data)}
    if task == "segments":
        rng = np.random.default_rng(0)
        y = rng.integers(0, 2, (SEGMENTS, EXTENT // 16, EXTENT // 16)).repeat(16, 1).repeat(16, 2)
        x = (y + rng.normal(0, 1, y.shape)).astype(np.float32)
        np.savez(data.with_suffix(".npz"), x=x, y=y)
        return {"data": str(data.with_suffix(".npz"))}
    return {}


def parts(settings: dict[str, Any]) -> dict[str, float]:
    """Seconds of some steps on this thread, and of their batches, sweeps and convolutions."""
    from torch.profiler import ProfilerActivity, profile

    steps, seconds = Steps(configure(**settings)), dict.fromkeys(("batches", "all"), 0.0)
    steps.train(steps.batch(0))  # compiles
    with profile(activities=[ProfilerActivity.CPU]) as profiler:
        for step in range(1, PROFILED_STEPS + 1):
            start = time.perf_counter()
            batch = steps.batch(step)
            seconds["batches"] += time.perf_counter() - start
            steps.train(batch)
            seconds["all"] += time.perf_counter() - start
    names = {
        "sweeps": ("_Sweep", "_SweepBackward"),
        "convolutions": ("aten::convolution", "aten::convolution_backward"),
    }
    events = profiler.key_averages()
    for part, keys in names.items():
        seconds[part] = sum(event.cpu_time_total for event in events if event.key in keys) / 1e6
    return seconds


if __name__ == "__main__":
    main()
