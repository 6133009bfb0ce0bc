"""Measure how long density models draw, with and without kept states, and draw the pictures of the docs.

    python benchmarks/density.py drawing                  # 64 pictures of 28×28; a minute
    python benchmarks/density.py pictures digits-binary   # of the run pixel-0 of density_table.py

Pictures are written to docs/images/.
"""

from __future__ import annotations

import time
from pathlib import Path

import numpy as np
import torch
from measuring import ROOT, argument_parser, cpu_times

from mdlstm_tk.models import DensityNet, PixelNet
from mdlstm_tk.report.contact_sheet import write_samples
from mdlstm_tk.runtime.samples import Given, uniform_numbers
from mdlstm_tk.training import load_checkpoint, open_run, sample_run
from mdlstm_tk.training.tasks import make_task

PICTURES, SIZE = 64, (28, 28)
COMPLETED = 8  # test images, each completed seven times
IMAGES = ROOT / "docs/images"


def measure_drawing() -> None:
    """Print how long drawing takes with kept states, and by computing the whole grid for each position."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    network = PixelNet(1, 1, hidden=32, layers=2).eval()
    numbers = torch.from_numpy(uniform_numbers(0, PICTURES, SIZE, 1))
    steps = {"kept states": lambda: network.sample(PICTURES, SIZE, uniform=numbers)}
    seconds = float(np.median(cpu_times(steps, 0)["kept states"]))
    drawn = network.sample(PICTURES, SIZE, uniform=numbers).numpy()
    network.contexts = lambda x: DensityNet.contexts(network, x)  # type: ignore[method-assign]
    start = time.process_time()
    whole = network.sample(PICTURES, SIZE, uniform=numbers).numpy()
    uncached = time.process_time() - start
    print(f"{PICTURES} pictures of {SIZE[0]}x{SIZE[1]}, 2 layers of 32 units, one thread, processor time")
    print(f"whole grid for each position: {uncached:.2f} s")
    print(f"kept states: {seconds:.2f} s, {uncached / seconds:.0f} times faster")
    print(f"values that differ: {int((drawn != whole).sum())} of {drawn.size}")


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
    parser = argument_parser(__doc__)
    parser.add_argument("what", choices=("drawing", "pictures"))
    parser.add_argument("task", nargs="?", default="digits-binary")
    parser.add_argument("--runs", type=Path, default=Path("runs/density"))
    arguments = parser.parse_args()
    if arguments.what == "drawing":
        measure_drawing()
    else:
        draw_pictures(arguments.task, arguments.runs)


if __name__ == "__main__":
    main()
