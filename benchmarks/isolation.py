"""Measure what isolation costs: throughput of a session, of `mdlstm infer` on a folder, and its start.

    python benchmarks/isolation.py            # all tables, some 5 minutes
    python benchmarks/isolation.py --quick    # fewer rounds

Both ways alternate within one run. Numbers are medians; a ratio is the throughput, or the speed, with
isolation divided by that without.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from statistics import median

import numpy as np
from PIL import Image

BATCH = 64
GRIDS = (8, 32, 64, 128)
HIDDEN = (16, 32)
DIRECTIONS = (1, "all")
SECONDS = 0.4  # of one measurement of one way
FILES, EXTENT = 2000, 32


def alternate(ways: Sequence[Callable[[], object]], rounds: int, repeats: int = 1) -> list[list[float]]:
    """The seconds that each way takes, in several rounds that take turns."""
    seconds: list[list[float]] = [[] for _ in ways]
    for number in range(rounds):
        for index in range(len(ways)) if number % 2 else reversed(range(len(ways))):
            start = time.perf_counter()
            for _ in range(repeats):
                ways[index]()
            seconds[index].append((time.perf_counter() - start) / repeats)
    return seconds


def row(label: str, seconds: Sequence[Sequence[float]], count: int, unit: str) -> str:
    here, isolated = map(median, seconds)
    ratio = median(a / b for a, b in zip(*seconds, strict=True))
    if count:
        return f"| {label} | {count / here:,.0f} {unit} | {count / isolated:,.0f} {unit} | {ratio:.2f} |"
    return f"| {label} | {here * 1e3:.0f} ms | {isolated * 1e3:.0f} ms | {ratio:.2f} |"


def export(folder: Path, grid: int, hidden: int, directions: object) -> Path:
    import torch

    from mdlstm_tk import models
    from mdlstm_tk.export import export_onnx

    torch.manual_seed(0)
    path = folder / f"{grid}-{hidden}-{directions}.onnx"
    if not path.exists():
        network = models.create("md", 1, 1, hidden=hidden, directions=directions)
        export_onnx(network, path, grid=(grid, grid))
    return path


def measure_sessions(folder: Path, rounds: int) -> None:
    from mdlstm_tk.runtime import Session

    for grid in GRIDS:
        for hidden in HIDDEN:
            for directions in DIRECTIONS:
                path = export(folder, grid, hidden, directions)
                x = np.random.default_rng(0).random((BATCH, grid, grid, 1), np.float32)
                with Session(path, "cpu") as here, Session(path, "cpu", isolated=True) as isolated:
                    ways = [partial(here, x), partial(isolated, x)]
                    once = alternate(ways, 2)
                    repeats = max(1, round(SECONDS / min(once[0])))
                    label = f"{BATCH} of {grid}×{grid}, hidden {hidden}, {directions} direction(s)"
                    print(row(label, alternate(ways, rounds, repeats), BATCH, "samples/s"), flush=True)


def infer(*arguments: object) -> Callable[[], object]:
    """A call of `mdlstm infer` in a process of its own."""
    command = [sys.executable, "-m", "mdlstm_tk", "infer", *map(str, arguments), "-q", "--force"]
    return lambda: subprocess.run(command, check=True, capture_output=True)


def measure_infer(folder: Path, rounds: int) -> None:
    model = export(folder, EXTENT, 16, 1)
    rng = np.random.default_rng(0)
    for suffix in ("npy", "png"):
        (folder / suffix).mkdir()
        for number in range(FILES):
            x = rng.random((EXTENT, EXTENT), np.float32)
            if suffix == "npy":
                np.save(folder / f"npy/{number}.npy", x)
            else:
                Image.fromarray((255 * x).astype(np.uint8)).save(folder / f"png/{number}.png")
    for suffix in ("npy", "png"):
        arguments = (folder / suffix, "-m", model, "-o", folder / "out", "--device", "cpu")
        seconds = alternate([infer(*arguments), infer(*arguments, "--timeout", 600)], rounds)
        print(row(f"infer, {FILES} {suffix} of {EXTENT}×{EXTENT}", seconds, FILES, "files/s"), flush=True)
    arguments = (folder / "npy/0.npy", "-m", model, "-o", folder / "y.npy", "--device", "cpu")
    seconds = alternate([infer(*arguments), infer(*arguments, "--timeout", 600)], 2 * rounds)
    print(row("infer, one npy, from start to end", seconds, 0, ""), flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="fewer rounds")
    rounds = 4 if parser.parse_args().quick else 10
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        os.environ["XDG_STATE_HOME"] = str(folder / "state")
        print("| what | without isolation | with isolation | ratio |\n|---|--:|--:|--:|", flush=True)
        measure_infer(folder, rounds)
        measure_sessions(folder, rounds)


if __name__ == "__main__":
    main()
