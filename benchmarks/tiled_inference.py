"""Time, memory and disk of tiled inference on images of any size, made on the fly.

    python benchmarks/tiled_inference.py --size 4096 --threads 1
    python benchmarks/tiled_inference.py --size 32768 --threads 2 --folder /large/disk

It exports a segmenter of two classes with windows of 4×4, four directions and 32 units, writes a grey image
as a tiled TIFF, and runs `mdlstm infer` on it in a process of its own, whose peak of resident memory is
printed. With --compare the same network runs on the whole image, too, which needs the memory for it.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections.abc import Iterator
from math import ceil
from pathlib import Path
from typing import Any

import numpy as np
import tifffile
import torch
from measuring import argument_parser, python

from mdlstm_tk._util.sizes import format_size
from mdlstm_tk.export import export_onnx, export_tiles
from mdlstm_tk.models import create
from mdlstm_tk.runtime import Session

TILE = 256  # of the image file
# A process inherits the peak of the one that starts it, and this one has imported torch.
LAUNCHER = """
import resource, subprocess, sys
subprocess.run(sys.argv[1:], check=True)
usage = resource.getrusage(resource.RUSAGE_CHILDREN)
print(usage.ru_utime + usage.ru_stime, usage.ru_maxrss)
"""


def write_image(path: Path, size: int) -> None:
    """Write a grey image of size×size pixels, one tile after the other."""
    rng = np.random.default_rng(0)

    def tiles() -> Iterator[Any]:
        for _ in range(ceil(size / TILE) ** 2):
            yield rng.integers(0, 256, (TILE, TILE), np.uint8)

    tifffile.imwrite(
        path, tiles(), shape=(size, size), dtype=np.uint8, tile=(TILE, TILE), bigtiff=True, metadata=None
    )


def main() -> None:
    parser = argument_parser(__doc__)
    parser.add_argument("--size", type=int, default=4096, help="extent of the image")
    parser.add_argument("--tile", type=int, default=512)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--batch-size", type=int, default=4)
    parser.add_argument("--folder", type=Path, help="where to put image, scratch and mask")
    parser.add_argument("--compare", action="store_true", help="compare with a run on the whole image")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=options.folder) as name:
        measure(Path(name), options)


def measure(folder: Path, options: argparse.Namespace) -> None:
    """Make the model and the image, run, and print."""
    torch.manual_seed(0)
    network = create("md", 1, 2, kind="segment", hidden=32, windows=[(4, 4)], cell="stable").eval()
    metadata = {"kind": "segment", "classes": ("a", "b")}
    export_tiles(network, folder / "model.tiles", metadata=metadata)
    size: int = options.size
    write_image(folder / "x.tif", size)
    command = [sys.executable, "-P", "-m", "mdlstm_tk", "infer", folder / "x.tif", "-o", folder / "y.tif"]
    command += ["-m", folder / "model.tiles", "--device", "cpu", "--threads", options.threads]
    command += ["--tile", options.tile, "--batch-size", options.batch_size]
    start = time.perf_counter()
    processor, peak = map(float, python("-c", LAUNCHER, *command).split())
    seconds = time.perf_counter() - start
    print(
        f"{size}x{size}, tile {options.tile}, {options.threads} threads: {seconds:.1f} s, "
        f"{seconds / size**2 * 1e6:.3f} us a pixel ({processor / size**2 * 1e6:.3f} of processor time), "
        f"peak {peak / 1024:.0f} MB"
    )
    if options.compare:
        export_onnx(network, folder / "whole.onnx", form="scan", grid=None, channels=1, metadata=metadata)
        session = Session(folder / "whole.onnx", "cpu")
        x = tifffile.imread(folder / "x.tif")
        piece = x[:1024, :1024] / np.float32(255)
        session(piece)
        start = time.perf_counter()
        session(piece)
        microseconds = (time.perf_counter() - start) / piece.size * 1e6
        print(f"whole {format_size(piece.shape)}: {microseconds:.3f} us a pixel")
        whole = session(x / np.float32(255)).argmax(-1)
        different = int((whole != tifffile.imread(folder / "y.tif")).sum())
        print(f"pixels of the mask that differ from those of the whole image: {different}")


if __name__ == "__main__":
    main()
