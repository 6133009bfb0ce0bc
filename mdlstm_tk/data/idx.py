"""Images in IDX files, the format of MNIST and Fashion-MNIST: a header, then one byte for each pixel.

train-images-idx3-ubyte, t10k-images-idx3-ubyte      or the same with .gz
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterator
from functools import partial
from math import prod
from pathlib import Path

import numpy as np
import numpy.typing as npt

from mdlstm_tk.data.data_folder import DataFolder
from mdlstm_tk.data.spec import RawSample, Split
from mdlstm_tk.errors import InputError
from mdlstm_tk.regular_files import read_bytes
from mdlstm_tk.runtime.io.npy import MAX_BYTES

NAMES: dict[Split, str] = {"train": "train-images", "test": "t10k-images"}
ENDINGS = ("-idx3-ubyte", ".idx3-ubyte", "-idx3-ubyte.gz", ".idx3-ubyte.gz")
MAGIC = 0x803  # unsigned bytes, three axes
HEADER = struct.Struct(">4I")

Images = npt.NDArray[np.uint8]


def find_idx(data: DataFolder) -> dict[Split, Path]:
    """The IDX files of images in a folder, by split; {} if there are none for training.

    Raises:
        InputError: a file is a symbolic link that leads out of the folder.
    """
    found: dict[Split, Path] = {}
    for split, name in NAMES.items():
        for path in (data.path / f"{name}{ending}" for ending in ENDINGS):
            if path.is_file() and split not in found:
                found[split] = data.require(path)
    return found if "train" in found else {}


def read_idx(path: Path, max_bytes: int = MAX_BYTES) -> Images:
    """Read an IDX file of images, compressed by gzip or not.

    Args:
        path: the file.
        max_bytes: maximum size of the images.

    Returns:
        (N, H, W).

    Raises:
        InputError: the file cannot be read, is not such a file, or is larger.
    """
    content = read_bytes(path, max_bytes)
    if content[:2] == b"\x1f\x8b":
        content = _decompress(content, path, max_bytes)
    if len(content) < HEADER.size:
        raise InputError(f"{path} has {len(content)} bytes, expected an IDX header of {HEADER.size}")
    magic, *shape = HEADER.unpack_from(content)
    if magic != MAGIC:
        raise InputError(f"{path} begins with {magic:#010x}, expected {MAGIC:#010x}, an IDX file of images")
    count, size = prod(shape), len(content) - HEADER.size
    if count == 0 or count != size:
        raise InputError(f"{path} says that it holds {tuple(shape)} bytes of images, but it holds {size}")
    return np.frombuffer(content, np.uint8, offset=HEADER.size).reshape(shape)


def list_idx(path: Path) -> Iterator[RawSample]:
    """The images of an IDX file as samples without a target.

    Raises:
        InputError: as `read_idx`.
    """
    for k, image in enumerate(read_idx(path)):
        yield RawSample(f"image {k}", partial(_as_read, image), _no_target, is_file=True)


def _as_read(image: Images) -> Images:
    return image


def _no_target() -> None:
    """The target of an image whose probability is learned."""


def _decompress(content: bytes, path: Path, max_bytes: int) -> bytes:
    stream = zlib.decompressobj(zlib.MAX_WBITS | 16)
    try:
        data = stream.decompress(content, max_bytes + 1)
    except zlib.error as error:
        raise InputError(f"{path} is damaged: {error}") from None
    if len(data) > max_bytes:
        raise InputError(f"{path} holds more than {max_bytes} bytes, expected less")
    if not stream.eof:
        raise InputError(f"{path} is damaged: it ends too early")
    return data
