"""Where the time of a default `mdlstm train` goes: 1000 steps of the layer, and everything around it.

    python benchmarks/training.py                  # takes half a minute on an otherwise idle machine

A run is what `mdlstm train` does between its first and its last line: data, network, loss, optimizer,
metrics, validations, checkpoints. The layer alone does as many forward and backward passes of the same
shape. Runs and passes take turns, on one thread, and the medians of their CPU times are compared.
"""

from __future__ import annotations

import tempfile
from pathlib import Path

import numpy as np
from contenders import Shape, make_layer, make_step, torch_threads
from measuring import cpu_times, markdown

from mdlstm_tk.training import configure, new_job, train

CONFIG = configure({"device": "cpu"})  # the default task: 16 matrices of 8x8 a step, 16 units
SHAPE = Shape(CONFIG.batch_size, CONFIG.grid, 1, CONFIG.hidden)
COLUMNS = ("what", "s", "ms a step", "steps/s")


def train_once() -> None:
    """Train a default network in a temporary folder."""
    with tempfile.TemporaryDirectory() as folder:
        train(new_job(CONFIG, Path(folder) / "run"))


def table() -> list[list[str]]:
    """One row per part, in the columns of COLUMNS."""
    step = make_step(*make_layer(SHAPE), training=True)

    def layer_alone() -> None:
        for _ in range(CONFIG.steps):
            step()

    with torch_threads(1):
        times = cpu_times({"run": train_once, "layer": layer_alone}, seconds=0)
    whole, layer = np.median(times["run"]), np.median(times["layer"])
    rows = {"the whole run": whole, f"the layer alone, {SHAPE}": layer, "the rest": whole - layer}
    speeds = [f"{CONFIG.steps / whole:.0f}", f"{CONFIG.steps / layer:.0f}", ""]
    return [
        [name, f"{seconds:.2f}", f"{seconds / CONFIG.steps * 1e3:.2f}", speed]
        for (name, seconds), speed in zip(rows.items(), speeds, strict=True)
    ]


if __name__ == "__main__":
    print(markdown(COLUMNS, table(), 1))
