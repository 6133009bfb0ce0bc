"""Measure density models: drawing with and without kept states, and networks of equal size.

    python benchmarks/density.py drawing                       # 64 pictures of 28×28; a minute
    python benchmarks/density.py table digits-binary --seeds 3 # trains all networks; half an hour
    python benchmarks/density.py table fashion --seeds 3 --runs runs
    python benchmarks/density.py pictures digits-binary        # of the run pixel-0 of that table

The table has the errors of the best weights on test data, as `mdlstm compare` finds them. All networks have
equally many parameters and steps. Existing results in the folder of runs are used again.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from statistics import mean
from typing import Any

import numpy as np
import torch
from performance import markdown

from mdlstm_tk.data import Ising, batches
from mdlstm_tk.export.drawing import drawing_model
from mdlstm_tk.models import DensityNet, PixelNet
from mdlstm_tk.runtime import Session
from mdlstm_tk.runtime.samples import Given, uniform_numbers, write_samples
from mdlstm_tk.training import default_config, load_checkpoint, open_run, sample_run
from mdlstm_tk.training.tasks import make_task

PICTURES, SIZE = 64, (28, 28)
COMPLETED = 8  # test images, each completed seven times
IMAGES = Path(__file__).parent.parent / "docs/images"


def seconds(draw: Callable[[], Any], repeats: int) -> float:
    """The median processor time of a call on one thread, after one call that is not counted."""
    times = []
    for _ in range(1 + repeats):
        start = time.process_time()
        draw()
        times.append(time.process_time() - start)
    return float(np.median(times[1:] or times))


def measure_drawing() -> None:
    """Print how long drawing takes with kept states, and by computing the whole grid for each position."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    network = PixelNet(1, 1, hidden=32, layers=2).eval()
    uniform = uniform_numbers(0, PICTURES, SIZE, 1)
    numbers = torch.from_numpy(uniform)
    session = Session(drawing_model(network, SIZE).SerializeToString(), "cpu")
    kept = seconds(lambda: network.sample(PICTURES, SIZE, uniform=numbers), 5)
    onnx = seconds(lambda: session.sample(PICTURES, SIZE, uniform=uniform), 5)
    drawn = session.sample(PICTURES, SIZE, uniform=uniform)
    network.contexts = lambda x: DensityNet.contexts(network, x)  # type: ignore[method-assign]
    start = time.process_time()
    whole = network.sample(PICTURES, SIZE, uniform=numbers).numpy()
    uncached = time.process_time() - start
    print(f"{PICTURES} pictures of {SIZE[0]}x{SIZE[1]}, 2 layers of 32 units, one thread, processor time")
    print(f"whole grid for each position, torch   {uncached:8.2f} s")
    print(f"kept states, torch                    {kept:8.2f} s   {uncached / kept:6.0f} times faster")
    print(f"kept states, ONNX Runtime             {onnx:8.2f} s   {uncached / onnx:6.0f} times faster")
    print(f"values that differ: {int((drawn != whole).sum())} of {drawn.size}")


def print_table(task: str, seeds: int, steps: int | None, size: str | None, runs: Path) -> None:
    """Print the mean nats of all networks and baselines, as a table in Markdown."""
    folder = runs / f"{task}-{size}" if size else runs / task
    summary = folder / "summary.json"
    if not summary.is_file():
        options = ["--seeds", str(seeds), *(["--steps", str(steps)] if steps else [])]
        options += ["--size", size] if size else []
        command = [
            sys.executable,
            "-m",
            "mdlstm_tk",
            "compare",
            "--task",
            task,
            "-o",
            str(folder),
            *options,
        ]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    results: dict[str, Any] = json.loads(summary.read_text(encoding="utf-8"))
    rows = []
    for name, entry in sorted(results.items(), key=lambda item: mean(item[1]["errors"]["nats"])):
        nats, bits = entry["errors"]["nats"], entry["errors"]["bits_per_dim"]
        spread = f"{min(nats):.2f}–{max(nats):.2f}"
        parameters = f"{entry['parameters']:,}" if "parameters" in entry else ""
        duration = f"{mean(entry['seconds']):.0f}" if "seconds" in entry else ""
        rows.append([name, parameters, f"{mean(nats):.2f}", spread, f"{mean(bits):.3f}", duration])
    if task == "ising":
        config = default_config(task)
        exact = make_task(replace(config, size=size) if size else config)
        assert isinstance(exact, Ising)
        # The mean over these very images: the entropy is the mean over all.
        count = len(next(iter(results.values()))["errors"]["nats"])
        parts = (batch.x for seed in range(count) for batch in batches(exact, "test", seed, 512))
        nats = float(np.mean([-exact.log_prob(x) for x in parts]))
        rows.insert(0, [f"exact (entropy {exact.entropy:.2f})", "", f"{nats:.2f}", "", "", ""])
    print(
        markdown(["network", "parameters", "nats", "lowest–highest", "bits per dimension", "s a run"], rows)
    )


def draw_pictures(task: str, runs: Path) -> None:
    """Draw images, and complete the upper halves of test images, into docs/images/."""
    run = open_run(runs / task / "pixel-0")
    write_samples(IMAGES / f"density-{task}.png", sample_run(run, PICTURES))
    test = make_task(load_checkpoint(run.checkpoint).config).batch(0, 0, COMPLETED, "test").x
    mask = np.zeros(test.shape[1:3], bool)
    mask[: len(mask) // 2] = True
    rows = []
    for k, image in enumerate(test):
        upper = np.where(mask[..., None], image, np.float32(0))
        completed = sample_run(run, COMPLETED - 1, seed=k, given=Given(upper, mask))
        rows += [np.where(mask[..., None], image, np.float32(0.5))[None], completed]
    write_samples(IMAGES / f"density-{task}-completed.png", np.concatenate(rows))


def main() -> None:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("what", choices=("drawing", "table", "pictures"))
    parser.add_argument("task", nargs="?", default="digits-binary")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--steps", type=int)
    parser.add_argument("--size")
    parser.add_argument("--runs", type=Path, default=Path("runs"))
    arguments = parser.parse_args()
    if arguments.what == "drawing":
        measure_drawing()
    elif arguments.what == "pictures":
        draw_pictures(arguments.task, arguments.runs)
    else:
        print_table(arguments.task, arguments.seeds, arguments.steps, arguments.size, arguments.runs)


if __name__ == "__main__":
    main()
