"""Read and write arrays, images and tables; write files atomically. This module names the file types."""

import os
from typing import Literal, get_args

IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".tif", ".tiff", ".bmp", ".gif", ".webp", ".pgm", ".ppm")
TILED_SUFFIX = ".tiles"  # of tiled exports
STDIO = "-"  # standard input, or standard output
READABLE = (".npy", ".npz", ".csv", *IMAGE_SUFFIXES)
READABLE_IN_TILES = (".npy", ".zarr", ".tif", ".tiff")  # by region, by tiled models

Format = Literal["npy", "npz", "json", "png", "csv", "txt", "tsv", "xml", "tif", "zarr"]
"""A file format of results."""
FORMATS: tuple[Format, ...] = get_args(Format)


def suffix_of(path: str | os.PathLike[str]) -> str:
    """The suffix of a path in lower case: ".npy" for A.NPY, "" for a path without one, such as a pipe."""
    return os.path.splitext(path)[1].lower()


def is_tiled(path: str | os.PathLike[str]) -> bool:
    """True if a path has the suffix of a tiled export."""
    return suffix_of(path) == TILED_SUFFIX
