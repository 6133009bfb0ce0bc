"""Whether a grid is too large for a model that takes it whole, and how to run it in tiles."""

from __future__ import annotations

from math import prod
from pathlib import Path

from mdlstm_tk._util.sizes import format_size
from mdlstm_tk._util.text import shell_quoted
from mdlstm_tk.errors import InputError, MDLSTMError
from mdlstm_tk.runtime.io.npy import FLOAT_BYTES
from mdlstm_tk.runtime.metadata import Metadata
from mdlstm_tk.runtime.providers import available_memory
from mdlstm_tk.runtime.tiles.raw import open_npy
from mdlstm_tk.runtime.tiles.sources import TIFF_SUFFIXES, Reader

LARGE_BYTES = 2**22  # of a TIFF; smaller ones are decoded faster than tifffile is imported
POSITION_BYTES = 1000
"""Roughly what a run takes for each position of x: a grid network of four directions with 32 units takes
2300, and a segmenter of that size with 4×4 windows 150."""


def whole_grid_advice(source: str, metadata: Metadata, model: Path, max_bytes: int) -> str | None:
    """What to tell a user whose grid may be too large for a run on all of it; None if it is not.

    Args:
        source: path of a `.npy` or a large TIFF file; nothing is said of others.
        metadata: of a model for whole grids.
        model: its path.
        max_bytes: maximum size in bytes of the array.

    Raises:
        InputError: the array is larger than `max_bytes`.
    """
    memory = available_memory()
    shape = _shape(Path(source))
    if shape is None or memory is None:
        return None
    size = prod(shape) * FLOAT_BYTES
    grid = shape[-1 - metadata.ndim : -1] if len(shape) > metadata.ndim else shape
    needed = prod(grid) * POSITION_BYTES
    run = shell_quoted(model.parent) if (model.parent / "config.toml").exists() else "RUN"
    commands = (
        f"mdlstm export {run} --form tiles, then: mdlstm infer {shell_quoted(source)} "
        f"-m {run}/model.tiles --tile 512"
    )
    if size > max_bytes:
        raise InputError(
            f"{source} has {format_size(grid)} positions and takes {size} bytes, more than {max_bytes}; "
            f"allow more with --max-bytes, or run it in tiles: {commands}"
        )
    if needed > memory:
        return (
            f"a run on all {format_size(grid)} positions of {source} may need some "
            f"{needed / 2**30:.0f} GiB, and this machine has {memory / 2**30:.0f}; to run it in tiles: "
            f"{commands}"
        )
    return None


def _shape(path: Path) -> tuple[int, ...] | None:
    """The shape of the array in a file; None if that is not known without reading it."""
    suffix = path.suffix.lower()
    reader: Reader
    try:
        if suffix == ".npy":
            reader = open_npy(path)
        elif suffix in TIFF_SUFFIXES and path.stat().st_size >= LARGE_BYTES:
            from mdlstm_tk.runtime.tiles.tif import TifReader  # imported late: it needs tifffile

            reader = TifReader(path)
        else:
            return None
    except (MDLSTMError, OSError):  # reading the file will say what is wrong
        return None
    reader.close()
    return reader.shape
