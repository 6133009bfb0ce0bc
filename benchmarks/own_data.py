"""Test errors on data of one's own, by number of samples and minutes of training.

    python benchmarks/own_data.py images --samples 200,1000,5000 --minutes 1,3,10
    python benchmarks/own_data.py masks --samples 20,100,500 --minutes 1,3,10

Folders are written as a user has them, and trained on with the default settings of their task: pictures of
clothes (Fashion-MNIST, 28×28, ten classes; Debian's package dataset-fashion-mnist) to classify, and mosaics
of photographs (scikit-image, 64×64, six classes) to segment. The minutes are those of one core, counted as
steps, which are timed before the trainings. A cell of the table is one training; it is kept in a file of
benchmarks/results/, so that an interrupted table goes on. `--write` puts the table into docs/training.md.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from density_tasks import CLOTHES, read_idx
from equal_time import seconds_a_step
from measuring import (
    RESULTS,
    ROOT,
    argument_parser,
    hold_settings,
    machine,
    markdown,
    resumed,
    settings_of,
    write_between_markers,
)
from PIL import Image

from mdlstm_tk.data.builtin.textures import Textures
from mdlstm_tk.kinds import kind_named
from mdlstm_tk.training import TrainConfig, configure, train

TASKS = {"images": "classify", "masks": "segment"}
TEST_SAMPLES = {"images": 2000, "masks": 200}
VALIDATION = 0.2  # of the samples
TIMING_SECONDS = 20


def write_images(folder: Path, count: int) -> None:
    """Write the first `count` pictures of Fashion-MNIST for training, and pictures for testing."""
    for split, name, total in (("train", "train", count), ("test", "t10k", TEST_SAMPLES["images"])):
        images = read_idx(CLOTHES / f"{name}-images-idx3-ubyte")[:total]
        labels = read_idx(CLOTHES / f"{name}-labels-idx1-ubyte")[:total]
        for k, (image, label) in enumerate(zip(images, labels.tolist(), strict=True)):
            place = folder / split / str(label) / f"{k:05}.png"
            place.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(image).save(place)


def write_masks(folder: Path, count: int) -> None:
    """Write mosaics of photographs with masks; those for testing are cut from other parts of them."""
    task = Textures(kind_named("segment"), (64, 64))
    for split, total in (("train", count), ("test", TEST_SAMPLES["masks"])):
        batch = task.batch(0, 0, total, split)  # type: ignore[arg-type]
        pixels = np.clip(128 + 40 * batch.x[..., 0], 0, 255).astype(np.uint8)  # x has mean 0, deviation 1
        for kind, arrays in (("images", pixels), ("masks", batch.y.astype(np.uint8))):
            (folder / split / kind).mkdir(parents=True, exist_ok=True)
            for k, array in enumerate(arrays):
                Image.fromarray(array).save(folder / split / kind / f"{k:05}.png")


WRITERS: dict[str, Callable[[Path, int], None]] = {"images": write_images, "masks": write_masks}


def measure(config: TrainConfig, folder: Path) -> dict[str, Any]:
    """Train once; returns its test error and what else there is to know."""
    result = train(config, folder, force=True)
    assert result["split"] == "test"
    cell = {"error": result["errors"]["error"], "machine": machine(), "steps": config.steps}
    return cell | {"parameters": result["parameters"], "best step": result["step"]}


def table(kind: str, cells: Mapping[str, Any]) -> str:
    """Errors by number of samples and minutes."""
    keys = [tuple(name.split(", ")) for name in cells if name.endswith("min")]
    samples, minutes = (list(dict.fromkeys(each)) for each in zip(*keys, strict=True))
    rows = []
    for count in samples:
        errors = [cells.get(f"{count}, {duration}", {}).get("error") for duration in minutes]
        rows.append([count, *("" if error is None else f"{100 * error:.1f}" for error in errors)])
    return markdown([f"{kind}, error in %", *minutes], rows, 1)


def main(arguments: Sequence[str] | None = None) -> dict[str, Any]:
    """Measure what is missing in the results, print the table, and return the cells."""
    parser = argument_parser(__doc__)
    parser.add_argument("kind", choices=TASKS)
    parser.add_argument("--samples", required=True, help="numbers of training samples, as 100,1000")
    parser.add_argument("--minutes", required=True, help="of a training, as 1,4,16")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="setting of all")
    parser.add_argument("--write", action="store_true", help="write docs/training.md")
    parser.add_argument("--results", type=Path, default=RESULTS, help="folder of cells")
    parser.add_argument("-o", "--output", type=Path, default=Path("own-data"), help="default: %(default)s")
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    file = options.results / f"own-data-{options.kind}.json"
    hold_settings(file, {"set": options.set})
    folder: Path = options.output / options.kind
    trainings = {}
    for count in options.samples.split(","):
        data = folder / count
        if not data.exists():
            part = data.with_suffix(".part")  # after an interrupt, the rest is written
            WRITERS[options.kind](part, int(count))
            part.rename(data)
        values = {"task": TASKS[options.kind], "data": str(data), "validation": VALIDATION, "patience": 0}
        config = configure(**values | settings_of(options.set))
        name = f"{int(count):,} samples"
        timing = {f"seconds a step, {name}": partial(seconds_a_step, {name: config}, TIMING_SECONDS)}
        seconds = resumed(file, timing)[f"seconds a step, {name}"][name]
        for minutes in options.minutes.split(","):
            steps = max(1, round(60 * float(minutes) / seconds))
            run = folder / f"run-{count}-{minutes}"
            trainings[f"{name}, {minutes} min"] = partial(measure, replace(config, steps=steps), run)
    cells = resumed(file, trainings)
    print(table(options.kind, cells))
    if options.write:
        page = ROOT / "docs/training.md"
        write_between_markers(page, f"own-data-{options.kind}", table(options.kind, cells))
    return cells


if __name__ == "__main__":
    main()
