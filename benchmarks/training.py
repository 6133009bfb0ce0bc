"""Where the time of a default `mdlstm train` goes: 1000 steps of the layer, and everything around it.

    python benchmarks/training.py                  # takes half a minute on an otherwise idle machine

A run is what `mdlstm train` does between its first and its last line: data, network, loss, optimizer,
metrics, validations, checkpoints. The layer alone does as many forward and backward passes of the same
shape. Runs and passes take turns, on one thread, and the medians of their CPU times are compared.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median

from mdlstm_tk.benchmark import Shape, contenders, torch_threads
from mdlstm_tk.training import configure, new_job, train

CONFIG = configure({"device": "cpu"})  # the default task: 16 matrices of 8x8 a step, 16 units
SHAPE = Shape(CONFIG.batch_size, CONFIG.grid, 1, CONFIG.hidden)
COLUMNS = ("what", "s", "ms a step", "steps/s")
ROUNDS = 5


def train_once() -> None:
    """Train a default network in a temporary folder."""
    with tempfile.TemporaryDirectory() as folder:
        train(new_job(CONFIG, Path(folder) / "run"))


def thread_seconds(action: Callable[[], object]) -> float:
    start = time.thread_time()
    action()
    return time.thread_time() - start


def table() -> list[list[str]]:
    """One row per part, in the columns of COLUMNS."""
    steps, *_ = contenders(SHAPE, training=True)
    step = steps["layer"]

    def layer_alone() -> None:
        for _ in range(CONFIG.steps):
            step()

    with torch_threads(1):
        step()  # compiles
        train_once()
        runs, layers = zip(
            *((thread_seconds(train_once), thread_seconds(layer_alone)) for _ in range(ROUNDS)), strict=True
        )
    whole, layer = median(runs), median(layers)
    rows = {"the whole run": whole, f"the layer alone, {SHAPE}": layer, "the rest": whole - layer}
    speeds = [f"{CONFIG.steps / whole:.0f}", f"{CONFIG.steps / layer:.0f}", ""]
    return [
        [name, f"{seconds:.2f}", f"{seconds / CONFIG.steps * 1e3:.2f}", speed]
        for (name, seconds), speed in zip(rows.items(), speeds, strict=True)
    ]


if __name__ == "__main__":
    for row in (COLUMNS, *table()):
        print("  ".join(text.rjust(10) if column else text.ljust(36) for column, text in enumerate(row)))
