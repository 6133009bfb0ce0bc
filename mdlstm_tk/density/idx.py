"""Images in IDX files, the format of MNIST and Fashion-MNIST: a header, then one byte for each pixel.

train-images-idx3-ubyte and t10k-images-idx3-ubyte; also with .idx3, with .gz, or after emnist-letters-
"""

from __future__ import annotations

import gzip
import io
import re
import struct
import zlib
from math import prod
from pathlib import Path

import numpy as np
import numpy.typing as npt

from mdlstm_tk.data.files import files_below
from mdlstm_tk.data.task import Split
from mdlstm_tk.errors import InputError

NAME = re.compile(r"(.*-)?(train|t10k|test)-images[-.]idx3-ubyte(\.gz)?")
SPLIT_OF_NAME: dict[str, Split] = {"train": "train", "t10k": "test", "test": "test"}
MAGIC = b"\0\0\x08\x03"  # unsigned bytes, three axes
HEADER = struct.Struct(">4s3I")


def find_idx(folder: Path) -> dict[Split, Path]:
    """Return the IDX files of images in a folder, by split; {} if there are none for training.

    If the folder itself has none, they are searched at any depth: torchvision keeps them in MNIST/raw. Of a
    file and its compressed copy, the file is used.

    Raises:
        InputError: there are files of several data sets.
    """
    if not folder.is_dir():
        return {}
    in_folder = [path for path in folder.iterdir() if NAME.fullmatch(path.name) and path.is_file()]
    paths: dict[Split, dict[Path, Path]] = {}
    sets: dict[tuple[Path, str | None], Path] = {}  # a folder may hold one for each split of a set
    for path in sorted(in_folder) or files_below(folder):
        if match := NAME.fullmatch(path.name):
            key = path.with_name(path.name.removesuffix(".gz").replace(".idx3", "-idx3"))
            paths.setdefault(SPLIT_OF_NAME[match[2]], {}).setdefault(key, path)
            parent = path.parent.parent if path.parent.name in SPLIT_OF_NAME else path.parent
            sets.setdefault((parent, match[1]), path)
    for split, files in paths.items():
        if len(files) > 1 or len(sets) > 1:
            first, second, *_ = files.values() if len(files) > 1 else sets.values()
            what = f"more than one file of images for {split}" if len(files) > 1 else "two data sets"
            raise InputError(
                f"{folder} has {what}, {first} and {second}; give a folder with the files of one data set"
            )
    return {split: next(iter(files.values())) for split, files in paths.items()} if "train" in paths else {}


def read_idx(path: Path) -> npt.NDArray[np.uint8]:
    """Read the images (N, H, W) of an IDX file, compressed by gzip or not.

    Raises:
        InputError: the file cannot be read, or is not such a file.
    """
    try:
        content = path.read_bytes()
        if content[:2] == b"\x1f\x8b":
            content = gzip.GzipFile(fileobj=io.BytesIO(content)).read()
    except (EOFError, OSError, zlib.error) as error:
        raise InputError(f"{path} cannot be used: {error}") from None
    if len(content) < HEADER.size or not content.startswith(MAGIC):
        raise InputError(
            f"{path} has {len(content)} bytes and begins with 0x{content[:4].hex()}, expected "
            f"0x{MAGIC.hex()}, an IDX file of images"
        )
    _, *shape = HEADER.unpack_from(content)
    count, size = prod(shape), len(content) - HEADER.size
    if count == 0 or count != size:
        raise InputError(f"{path} says that it holds {tuple(shape)} bytes of images, but it holds {size}")
    return np.frombuffer(content, np.uint8, offset=HEADER.size).reshape(shape)
