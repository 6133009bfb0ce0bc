"""Test errors on data of one's own, by number of samples and minutes of training on one core.

    python benchmarks/own_data.py images --samples 200 --minutes 1
    python benchmarks/own_data.py masks --samples 20 --minutes 10

A folder is written as a user has it, and trained on with the default settings of its task: pictures of
clothes (Fashion-MNIST, 28×28, ten classes; Debian's package dataset-fashion-mnist) to classify, or mosaics
of photographs (scikit-image, 64×64, six classes) to segment. The training becomes a row of
benchmarks/results/own-data.tsv, and the tables of docs/training.md are printed.
"""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from density_tasks import CLOTHES, read_idx
from measuring import RESULTS, Row, add_row, argument_parser, markdown, read_rows, settings_of
from PIL import Image

from mdlstm_tk.data.builtin.textures import Textures
from mdlstm_tk.kinds import kind_named
from mdlstm_tk.training import configure, train

TASKS = {"images": "classify", "masks": "segment"}
TEST_SAMPLES = {"images": 2000, "masks": 200}
VALIDATION = 0.2  # of the samples


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


def table(kind: str, rows: Sequence[Row]) -> str:
    """Errors by number of samples and minutes."""
    errors = {(r["samples"], r["minutes"]): 100 * float(r["error"]) for r in rows if r["data"] == kind}
    samples, minutes = (sorted({key[k] for key in errors}, key=float) for k in (0, 1))
    lines = [
        [f"{int(s):,} samples", *(f"{errors[s, m]:.1f}" if (s, m) in errors else "" for m in minutes)]
        for s in samples
    ]
    return markdown([f"{kind}, error in %", *(f"{m} min" for m in minutes)], lines)


def main(words: Sequence[str] | None = None) -> None:
    parser = argument_parser(__doc__)
    parser.add_argument("kind", choices=TASKS)
    parser.add_argument("--samples", type=int, required=True, help="of training, with those of validation")
    parser.add_argument("--minutes", type=float, required=True)
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="a setting")
    parser.add_argument("--results", type=Path, default=RESULTS / "own-data.tsv")
    options = parser.parse_args(words)
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as scratch:
        {"images": write_images, "masks": write_masks}[options.kind](Path(scratch, "data"), options.samples)
        values = {"task": TASKS[options.kind], "data": f"{scratch}/data", "minutes": options.minutes}
        config = configure(**values, validation=VALIDATION, **settings_of(options.set))
        result = train(config, Path(scratch, "run"))
        assert result["split"] == "test"
    row = {"data": options.kind, "samples": options.samples, "minutes": f"{options.minutes:g}"}
    add_row(options.results, row | {"steps": result["step"], "error": result["errors"]["error"]})
    for kind in TASKS:
        print(f"{table(kind, read_rows(options.results))}\n")


if __name__ == "__main__":
    main()
