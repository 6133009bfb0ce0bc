"""Fashion-MNIST (Xiao, Rasul, Vollgraf 2017): 70,000 pictures of clothes, 28×28 pixels.

MNIST and its other successors come in files of the same format, and can replace it.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any, ClassVar

from mdlstm_tk._util.sizes import format_size
from mdlstm_tk.data.order import make_rng
from mdlstm_tk.data.scan import digest_of
from mdlstm_tk.data.task import Dataset, Split, TaskSpec
from mdlstm_tk.density.digits import binarise
from mdlstm_tk.density.idx import find_idx, read_idx
from mdlstm_tk.errors import InputError

FOLDER = Path("/usr/share/datasets/fashion-mnist")  # of Debian's package dataset-fashion-mnist


@lru_cache(maxsize=2)
def _read(path: Path, version: tuple[int, int]) -> tuple[Any, list[str]]:
    """The pictures of a file in black and white, (N, 28, 28) uint8, and their digests, which are of the
    grey pictures; `version` is that of the file."""
    images = read_idx(path)
    return binarise(images, 255), [digest_of(image) for image in images]


def _load(folder: Path) -> tuple[tuple[Any, list[str]], ...]:
    """The pictures for training and those for testing, see `_read`."""
    files = find_idx(folder)
    if not files and folder == FOLDER:
        raise InputError(
            f"Fashion-MNIST is not at {folder}; install Debian's package dataset-fashion-mnist, or say "
            "with --data FOLDER where its IDX files are, or those of MNIST"
        )
    if set(files) != {"train", "test"}:
        names = files["train"].name if files else "none for training"
        raise InputError(
            f"{folder}: the task fashion expects the IDX files train-images-idx3-ubyte and "
            f"t10k-images-idx3-ubyte, or these with .gz, found {names}; for other images use "
            "--task density"
        )
    paths = [files["train"].resolve(), files["test"].resolve()]
    loaded = tuple(_read(path, (path.stat().st_mtime_ns, path.stat().st_size)) for path in paths)
    sizes = [format_size(images.shape[1:]) for images, _ in loaded]
    if sizes[0] != sizes[1]:
        raise InputError(f"{folder}: the images for training and testing have {' and '.join(sizes)} pixels")
    return loaded


class Fashion(Dataset):
    """The probability of pictures of clothes in black and white.

    See `mdlstm_tk.density.digits.binarise` for how the pictures become black and white.

    Args:
        kind: "density".
        validation: share of the 60,000 training pictures, the same for every seed, that chooses the best
            checkpoint.
        data: folder of the IDX files, which may be those of another data set, such as MNIST; if empty,
            where Debian's package puts them.

    Raises:
        InputError: the files are not there, or are damaged, or their images differ in size.
    """

    kind = "density"
    defaults: ClassVar[Mapping[str, Any]] = {
        "model": "pixel",
        "steps": 4000,
        "batch_size": 32,
        "hidden": 52,
        "lr": 0.02,
        "schedule": "cosine",
        "warmup": 100,
        "clip": 1.0,
        "average": 0.99,
        "validation": 0.02,
        "evaluate_every": 500,
    }

    def __init__(self, kind: Any, validation: float = 0.02, data: str | Path = "") -> None:
        (train, digests), (test, of_test) = _load(Path(data or FOLDER))
        order = make_rng(0, 2).permutation(len(train))
        count = round(validation * len(train))
        pictures: dict[Split, Any] = {
            "train": train[order[count:]],
            "validation": train[order[:count]],
            "test": test,
        }
        sets = {split: [(image[..., None], None) for image in images] for split, images in pictures.items()}
        super().__init__(TaskSpec("fashion", self.kind, 1, 1, train.shape[1:]), sets, kind)
        self.digests = {
            "train": [digests[k] for k in order[count:]],
            "validation": [digests[k] for k in order[:count]],
            "test": of_test,
        }
