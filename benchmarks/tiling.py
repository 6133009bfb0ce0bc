"""Memory and time of grids that are swept tile by tile, in training and in inference. Needs Linux.

    python benchmarks/tiling.py                   # 2048×2048, tiles of 256: 5 GB of memory, some minutes
    python benchmarks/tiling.py --extent 1024 --directions all
    python benchmarks/tiling.py inference --extent 16384 --tile 512

Each training step runs in a process of its own that makes x and the gradient of y, and notes its memory
before. Both ways take turns. Memory is the highest that the process had (VmHWM) less what it had before the
step, less y and the gradient of x. Time is that of the processor on one thread, what the system takes to
clear memory included. For inference a segmenter of two classes with windows of 4×4, four directions and 32
units is exported, a grey image is written as a tiled TIFF, and `mdlstm infer` runs in a process of its own,
whose peak of resident memory is printed.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from math import ceil
from multiprocessing import get_context
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch
from measuring import argument_parser, markdown, python

from mdlstm_tk import MDLSTM, tiling
from mdlstm_tk.export import export_tiles
from mdlstm_tk.models import create

WAYS = ("plain", "tiled")
COLUMNS = ("one step", "MiB beside x, y and their gradients", "seconds", "of these, the system")
IMAGE_TILE = 256  # of the image file
# A process inherits the peak of the one that starts it, and this one has imported torch.
LAUNCHER = """
import resource, subprocess, sys
subprocess.run(sys.argv[1:], check=True)
usage = resource.getrusage(resource.RUSAGE_CHILDREN)
print(usage.ru_utime + usage.ru_stime, usage.ru_maxrss)
"""


def memory(name: str) -> int:
    """A number of /proc/self/status in bytes: VmRSS is what the process has, VmHWM the most that it had."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(f"{name}:")) * 1024


def step(way: str, folder: Path, options: argparse.Namespace) -> dict[str, float]:
    """Do one training step in this process, write its gradients, and return its figures."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    layer = MDLSTM(1, options.hidden, cell="stable", directions=options.directions)

    def run(x: torch.Tensor) -> torch.Tensor:
        return layer(x) if way == "plain" else tiling.checkpointed(layer, x, options.tile)

    run(torch.rand(1, 8, 8, 1, requires_grad=True)).sum().backward()  # compile the kernels
    layer.zero_grad()
    x = torch.rand(1, options.extent, options.extent, 1, requires_grad=True)
    grad = torch.randn(*x.shape[:-1], layer.output_size)
    before, start = memory("VmRSS"), os.times()
    y = run(x)
    y.backward(grad)
    end = os.times()
    gradients = {name: parameter.grad for name, parameter in layer.named_parameters()}
    np.savez(folder / f"{way}.npz", x=x.grad, **gradients)
    return {
        "beside": memory("VmHWM") - before - y.nbytes - x.nbytes,
        "step": end.user + end.system - start.user - start.system,
        "system": end.system - start.system,
    }


def largest_difference(folder: Path) -> float:
    """The largest difference of a gradient, as a part of the largest number in it; NaN if one is NaN."""
    with np.load(folder / "plain.npz") as plain, np.load(folder / "tiled.npz") as tiled:
        ratios = [abs(tiled[name] - plain[name]).max() / abs(plain[name]).max() for name in plain]
    return float(np.max(ratios))


def measure_training(folder: Path, options: argparse.Namespace) -> None:
    """Print the figures of both ways, and how far their gradients are from each other."""
    rounds: dict[str, list[dict[str, float]]] = {way: [] for way in WAYS}
    for number in range(options.rounds):
        for way in WAYS[:: 1 if number % 2 else -1]:
            with ProcessPoolExecutor(1, get_context("spawn")) as pool:
                rounds[way].append(pool.submit(step, way, folder, options).result())
    rows = []
    for way in WAYS:
        beside, taken, system = (median(each[key] for each in rounds[way]) for key in rounds[way][0])
        rows.append([way, f"{beside / 2**20:,.0f}", f"{taken:.1f}", f"{system:.1f}"])
    print(markdown(COLUMNS, rows))
    print(f"gradients differ by at most {largest_difference(folder):.1e} of the largest number in them")


def measure_inference(folder: Path, options: argparse.Namespace) -> None:
    """Make the model and the image, run `mdlstm infer`, and print its figures."""
    import tifffile

    torch.manual_seed(0)
    network = create("md", 1, 2, kind="segment", hidden=options.hidden, windows=[(4, 4)], cell="stable")
    metadata = {"kind": "segment", "classes": ("a", "b")}
    export_tiles(network.eval(), folder / "model.tiles", metadata=metadata)
    rng, size = np.random.default_rng(0), options.extent

    def tiles() -> Iterator[Any]:
        for _ in range(ceil(size / IMAGE_TILE) ** 2):
            yield rng.integers(0, 256, (IMAGE_TILE, IMAGE_TILE), np.uint8)

    layout = {"shape": (size, size), "dtype": np.uint8, "tile": (IMAGE_TILE, IMAGE_TILE), "bigtiff": True}
    tifffile.imwrite(folder / "x.tif", tiles(), metadata=None, **layout)
    command = [sys.executable, "-P", "-m", "mdlstm_tk", "infer", folder / "x.tif", "-o", folder / "y.tif"]
    command += ["-m", folder / "model.tiles", "--device", "cpu", "--threads", options.threads]
    processor, peak = map(float, python("-c", LAUNCHER, *command, "--tile", options.tile).split())
    print(
        f"{size}x{size}, tile {options.tile}, {options.threads} threads: "
        f"{processor / size**2 * 1e6:.3f} us of processor time a pixel, peak {peak / 1024:.0f} MB"
    )


def main(words: Sequence[str] | None = None) -> None:
    parser = argument_parser(__doc__)
    parser.add_argument("what", nargs="?", choices=("training", "inference"), default="training")
    parser.add_argument("--extent", type=int, default=2048, help="of both axes of the grid or image")
    parser.add_argument("--tile", type=int, default=256, help="extent of a tile")
    parser.add_argument("--hidden", type=int, default=32)
    parser.add_argument("--directions", choices=["1", "all"], default="1", help="in training")
    parser.add_argument("--rounds", type=int, default=3, help="in training")
    parser.add_argument("--threads", type=int, default=1, help="in inference")
    parser.add_argument("--folder", type=Path, help="where to put image, scratch and mask")
    options = parser.parse_args(words)
    options.directions = 1 if options.directions == "1" else "all"
    with tempfile.TemporaryDirectory(dir=options.folder) as name:
        measure = measure_training if options.what == "training" else measure_inference
        measure(Path(name), options)


if __name__ == "__main__":
    main()
