"""Steps of `mdlstm train` with one thread, with two, and with two processes of one thread each.

    python benchmarks/training.py                        # takes ten minutes on an idle machine
    python benchmarks/training.py --task digits --rounds 5
    python benchmarks/training.py --checkout ../other    # beside the package of another checkout

Each figure is that of a whole process as a user starts it, the median of rounds in which all variants of a
task take turns; compiling and validating do not count. The shares are those of one thread: batches, sweeps
and convolutions, each with their backward passes; the rest is other layers, loss, optimizer and metrics.
"""

from __future__ import annotations

import json
import tempfile
import time
from collections.abc import Sequence
from math import nan
from pathlib import Path
from statistics import median

import numpy as np
from measuring import ROOT, argument_parser, markdown, python

COLUMNS = (
    *("task", "steps/s, 1 thread", "2 threads", "ratio", "2 processes", "ratio"),
    *("batches", "sweeps", "convolutions"),
)
PROFILED_STEPS = 10
SEGMENTS, EXTENT = 48, 128  # images of the task "segments", and their height and width
TASKS: dict[str, tuple[int, dict[str, str]]] = {  # steps, and settings; data is written to a folder
    "diagonal": (2000, {"task": "diagonal"}),
    "digits": (100, {"task": "digits"}),
    "textures": (50, {"task": "textures"}),
    "lines": (30, {"task": "transcribe", "precision": "bf16"}),
    "segments": (12, {"task": "segment", "model": "md"}),
}
VARIANTS = {"1": 1, "2": 2, "2 processes": 1}  # torch's threads


def main() -> None:
    parser = argument_parser(__doc__)
    parser.add_argument("--task", action="append", choices=TASKS, help="a row; may be repeated")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--checkout", type=Path, help="a second checkout, whose rows follow")
    parser.add_argument("--shares", help="print the seconds of the parts of a training with these settings")
    arguments = parser.parse_args()
    if arguments.shares:
        print(json.dumps(parts(json.loads(arguments.shares))))
        return
    checkouts = [ROOT, arguments.checkout] if arguments.checkout else [ROOT]
    rows = table(arguments.task or tuple(TASKS), arguments.rounds, checkouts)
    print(markdown(COLUMNS, rows, 1))


def table(
    tasks: Sequence[str] = tuple(TASKS), rounds: int = 3, checkouts: Sequence[Path] = (ROOT,)
) -> list[list[str]]:
    """The rows of COLUMNS."""
    rows = []
    for task in tasks:
        with tempfile.TemporaryDirectory() as folder:
            steps, settings = TASKS[task][0], TASKS[task][1] | prepare(task, Path(folder))
            rates: dict[tuple[Path, str], list[float]] = {}
            for _ in range(rounds):
                for checkout in checkouts:
                    for variant in VARIANTS:
                        result = train(checkout, variant, Path(folder), {**settings, "steps": str(steps)})
                        rates.setdefault((checkout, variant), []).append(result)
            of = json.loads(python(__file__, "--shares", json.dumps(settings), OMP_NUM_THREADS="1"))
            shares = [f"{of[name] / of['all']:.0%}" for name in ("batches", "sweeps", "convolutions")]
            for checkout in checkouts:
                one, two, processes = (median(rates[checkout, variant]) for variant in VARIANTS)
                figures = [f"{one:.2f}", f"{two:.2f}", f"{two / one:.2f}"]
                figures += [f"{processes:.2f}", f"{processes / one:.2f}"]
                is_this = checkout == ROOT
                name = task if is_this else f"{task}, {checkout.name}"
                rows.append([name, *figures, *(shares if is_this else [""] * len(shares))])
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


def train(checkout: Path, variant: str, folder: Path, settings: dict[str, str]) -> float:
    """Steps a second of a training; NaN if the checkout cannot start processes."""
    if variant == "2 processes" and not (checkout / "mdlstm_tk/training/processes.py").exists():
        return nan
    settings = {**settings, "evaluate_every": "1000000", "device": "cpu"}
    file = folder / "settings.toml"  # which checkouts of all versions read
    file.write_text("".join(f"{key} = {json.dumps(value)}\n" for key, value in settings.items()))
    options = ["-c", file, *(("--processes", "2") if variant == "2 processes" else ())]
    run, threads = folder / "run", str(VARIANTS[variant])
    arguments = ["train", *options, "-q", "-o", run, "--force"]
    python("-m", "mdlstm_tk", *arguments, checkout=checkout, OMP_NUM_THREADS=threads)
    return float(json.loads((run / "result.json").read_text())["steps_per_second"])


def parts(settings: dict[str, str]) -> dict[str, float]:
    """Seconds of some steps on this thread, and of their batches, sweeps and convolutions."""
    from torch.profiler import ProfilerActivity, profile

    from mdlstm_tk.training import configure, new_job
    from mdlstm_tk.training.trainer import Trainer

    config = configure({**settings, "device": "cpu"})
    with tempfile.TemporaryDirectory() as folder:
        job = new_job(config, Path(folder, "run"))
    trainer, seconds = Trainer(job), dict.fromkeys(("batches", "all"), 0.0)
    trainer.train_step(job.task.batch(config.seed, 0, config.batch_size), interrupted=False)  # compiles
    with profile(activities=[ProfilerActivity.CPU]) as profiler:
        for step in range(1, PROFILED_STEPS + 1):
            start = time.perf_counter()
            batch = job.task.batch(config.seed, step, config.batch_size)
            seconds["batches"] += time.perf_counter() - start
            trainer.train_step(batch, interrupted=False)
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
