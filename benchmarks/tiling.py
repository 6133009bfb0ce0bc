"""Measure training tile by tile: memory, time, and how far its gradients are from those of the layer.

    python benchmarks/tiling.py                   # 2048×2048, tiles of 256: 5 GB of memory, some minutes
    python benchmarks/tiling.py --extent 1024     # a quarter of both
    python benchmarks/tiling.py --directions all --hidden 16

Every measurement is a process of its own that makes x and the gradient of y, notes its memory, and then
runs one training step. Both ways take turns. Memory is the highest that the process had (VmHWM) less what
it had before the step, less y and the gradient of x. Time is that of the processor on one thread, what the
system takes to clear memory included. Needs Linux.
"""

from __future__ import annotations

import argparse
import os
import tempfile
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch
from measuring import argument_parser, markdown

from mdlstm_tk import MDLSTM, tiling

WAYS = ("plain", "tiled")
FIGURES = ("step", "system", "forward")
COLUMNS = ("one step", "MiB beside x, y and their gradients", "seconds", "of these, the system", "forward")


def memory(name: str) -> int:
    """A number of /proc/self/status in bytes: VmRSS is what the process has, VmHWM the most that it had."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(f"{name}:")) * 1024


def step(way: str, folder: Path, options: argparse.Namespace) -> dict[str, float]:
    """Do one training step in this process, write its gradients, and return its figures."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    directions: Any = options.directions if options.directions == "all" else 1
    layer = MDLSTM(1, options.hidden, cell=options.cell, directions=directions)

    def run(x: torch.Tensor) -> torch.Tensor:
        return layer(x) if way == "plain" else tiling.checkpointed(layer, x, options.tile)

    run(torch.rand(1, 8, 8, 1, requires_grad=True)).sum().backward()  # compile the kernels
    layer.zero_grad()
    x = torch.rand(1, options.extent, options.extent, 1, requires_grad=True)
    grad = torch.randn(*x.shape[:-1], layer.output_size)
    before, start = memory("VmRSS"), os.times()
    y = run(x)
    middle = os.times()
    y.backward(grad)
    end = os.times()
    figures = {
        "beside": memory("VmHWM") - before - y.nbytes - x.nbytes,
        "forward": middle.user + middle.system - start.user - start.system,
        "step": end.user + end.system - start.user - start.system,
        "system": end.system - start.system,
    }
    gradients = {name: parameter.grad for name, parameter in layer.named_parameters()}
    np.savez(folder / f"{way}.npz", x=x.grad, **gradients)
    return figures


def measure(way: str, folder: Path, options: argparse.Namespace) -> dict[str, float]:
    """The figures of one step in a process of its own."""
    with ProcessPoolExecutor(1, get_context("spawn")) as pool:
        return pool.submit(step, way, folder, options).result()


def largest_difference(folder: Path) -> float:
    """The largest difference of a gradient, as a part of the largest number in it; NaN if one is NaN."""
    with np.load(folder / "plain.npz") as plain, np.load(folder / "tiled.npz") as tiled:
        ratios = [abs(tiled[name] - plain[name]).max() / abs(plain[name]).max() for name in plain]
    return float(np.max(ratios))


def main() -> None:
    parser = argument_parser(__doc__)
    parser.add_argument("--extent", type=int, default=2048, help="of both axes of the grid")
    parser.add_argument("--tile", type=int, default=256, help="extent of a tile")
    parser.add_argument("--hidden", type=int, default=32)
    parser.add_argument("--directions", choices=["1", "all"], default="1")
    parser.add_argument("--cell", default="stable")
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        rounds: dict[str, list[dict[str, float]]] = {way: [] for way in WAYS}
        for number in range(options.rounds):
            for way in WAYS[:: 1 if number % 2 else -1]:
                rounds[way].append(measure(way, Path(name), options))
        difference = largest_difference(Path(name))
    figures = {way: {key: median(r[key] for r in rounds[way]) for key in rounds[way][0]} for way in WAYS}
    rows = [
        [way, f"{of_way['beside'] / 2**20:,.0f}", *(f"{of_way[name]:.1f}" for name in FIGURES)]
        for way, of_way in figures.items()
    ]
    print(markdown(COLUMNS, rows, 1))
    plain, tiled = (of_way | {"user": of_way["step"] - of_way["system"]} for of_way in figures.values())
    memory_ratio, time_ratio, user_ratio = (tiled[k] / plain[k] for k in ("beside", "step", "user"))
    print(f"\nmemory {memory_ratio:.3f}, time {time_ratio:.2f} of plain")
    print(f"time without the system's {user_ratio:.2f} of plain")
    print(f"gradients differ by at most {difference:.1e} of the largest number in them")


if __name__ == "__main__":
    main()
