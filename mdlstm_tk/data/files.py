"""The samples in a user's files: folders of images, tables beside them, and arrays.

A sample is a name and a function that reads it. One that cannot be used is named in the log and left out.
"""

from __future__ import annotations

import csv
import logging
import os
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from mdlstm_tk._util.text import composed
from mdlstm_tk.data.task import Extents
from mdlstm_tk.errors import InputError
from mdlstm_tk.io import IMAGE_SUFFIXES, Array
from mdlstm_tk.io.files import is_result
from mdlstm_tk.io.images import decode_image

log = logging.getLogger("mdlstm_tk.data")


class Sample(NamedTuple):
    """A sample of the user's.

    Attributes:
        name: in messages.
        read: returns the pixels of an image, or numbers (*grid, C), and the target as the file has it. It
            can be pickled. Raises `InputError` with the reason if the sample cannot be used.
        group: what is not divided among splits, such as the page of a line.
        is_image: it is decoded, which takes time.
    """

    name: str
    read: Callable[[], tuple[Array, Any]]
    group: str
    is_image: bool = True


def files_below(folder: Path) -> list[Path]:
    """All visible files below a folder, sorted, without results of `mdlstm infer`. Links are followed."""
    found, seen = [], set()
    for root, folders, names in os.walk(folder, followlinks=True):
        folders[:] = sorted(each for each in folders if not each.startswith("."))
        if (real := os.path.realpath(root)) in seen:  # a link to a folder above
            folders.clear()
            continue
        seen.add(real)
        found += [Path(root, name) for name in names if not name.startswith(".")]
    results = [path for path in found if is_result(path)]
    if results:
        log.info("results of mdlstm infer in %s, left out: %d", folder, len(results))
    return sorted({*found} - {*results})


def images_below(folder: Path) -> list[Path]:
    return [file for file in files_below(folder) if file.suffix.lower() in IMAGE_SUFFIXES]


def read_pixels(file: Path, label: str = "it") -> Array:
    """Decode an image file as `decode_image` does; errors say `label` in place of its name."""
    try:
        return decode_image(file.read_bytes(), label)
    except OSError as error:
        raise InputError(f"{label} cannot be read: {error.strerror}") from None


def image_sample(root: Path, file: Path, read_target: Callable[[], Any]) -> Sample:
    """The sample of an image in a folder."""
    name = os.path.relpath(file, root)
    return Sample(name, partial(_read_image, file, read_target), name)


def _read_image(file: Path, read_target: Callable[[], Any]) -> tuple[Array, Any]:
    return read_pixels(file), read_target()


def given(value: Any) -> Any:
    """A target that is known before its sample is read, for `functools.partial`."""
    return value


def of_class_folders(path: Path) -> list[Sample]:
    """The images below each subfolder, whose name is the target."""
    folders = sorted(each for each in path.iterdir() if each.is_dir() and not each.name.startswith("."))
    if outside := [file for file in images_below(path) if file.parent == path]:
        log.info("images in no folder of a class, left out: %d", len(outside))
    return [
        image_sample(path, file, partial(composed, folder.name))
        for folder in folders
        for file in images_below(folder)
    ]


def of_pairs(path: Path, targets: str, read: Callable[[Path], Any]) -> list[Sample]:
    """The images in images/, each with the file of the same name in another folder.

    Raises:
        InputError: one of the folders is missing, or two files have one name.
    """
    folders = path / "images", path / targets
    if missing := [folder.name for folder in folders if not folder.is_dir()]:
        raise InputError(f"{path}: {missing[0]}/ is missing; expected images/ and {targets}/")
    images, others = (by_stem(folder, images_below(folder)) for folder in folders)
    for folder, alone in zip(folders, (images.keys() - others, others.keys() - images), strict=True):
        if alone:
            names = f"{len(alone)}, such as {min(alone)}"
            log.warning("files in %s/ without one of the same name, left out: %s", folder.name, names)
    return [
        image_sample(path, images[stem], partial(read, others[stem]))
        for stem in sorted(images.keys() & others)
    ]


def by_stem(folder: Path, files: Iterable[Path]) -> dict[Path, Path]:
    """Files by their paths in a folder, without suffix.

    Raises:
        InputError: two have the same.
    """
    found: dict[Path, Path] = {}
    for file in files:
        if (first := found.setdefault(file.relative_to(folder).with_suffix(""), file)) != file:
            raise InputError(f"{first} and {file} have one name; keep one of them")
    return found


def of_table(
    path: Path, table: str, read_row: Callable[[dict[str, str]], Any], columns: Sequence[str] = ()
) -> list[Sample]:
    """The images that a CSV table names in its column `file`, each with the other cells of its row.

    Args:
        path: the folder with images, at any depth, and the table.
        table: its name.
        read_row: makes the target of a row, by the names of its columns.
        columns: the names of the other columns; () for any.

    Raises:
        InputError: the table is missing, has other columns, names an image twice, or a row has more or
            fewer cells than the first.
    """
    file = path / table
    try:
        text = file.read_text(encoding="utf-8-sig")
        first, *rows = [row for row in csv.reader(text.splitlines(), strict=True) if row] or [["?"]]
    except (OSError, ValueError, csv.Error) as error:
        raise InputError(f"{file}: {error}") from None
    names = [composed(cell.strip()) for cell in first]
    if names[:1] != ["file"] or len({*names}) < len(names) or (columns and names[1:] != [*columns]):
        expected = ",".join(["file", *columns]) if columns else "file and other names"
        raise InputError(f"{file} begins with {','.join(names):.80}, expected {expected}")
    samples: dict[str, Sample] = {}
    for row in rows:
        if len(row) != len(names):
            cells = f"{len(row)} cells, but the first row has {len(names)}"
            raise InputError(f"{file}: the row of {row[0]} has {cells}; quote cells that hold commas")
        target = partial(read_row, dict(zip(names[1:], map(composed, row[1:]), strict=True)))
        key = os.path.realpath(path / row[0])
        if key in samples:
            raise InputError(f"{file} names {row[0]} twice; keep one row")
        samples[key] = image_sample(path, path / row[0], target)
    if others := [image for image in images_below(path) if os.path.realpath(image) not in samples]:
        log.info("images that %s does not name, left out: %d", table, len(others))
    return [*samples.values()]


def is_npz(path: Path) -> bool:
    """True for an `.npz` file."""
    return path.suffix.lower() == ".npz" and not path.is_dir()


def of_arrays(
    file: Path, read_y: Callable[..., Any] | None, dtypes: str = "", has_grid: bool = False
) -> list[Sample]:
    """The samples of an `.npz` file.

    x (N, *grid) or (N, *grid, C) numbers; y targets; sizes (N, D), optional, the valid extents; ndim,
    optional: D, if it is not 2; names (K,), optional, of the columns of y. Other arrays are left out.

    Args:
        file: the file.
        read_y: called as `read_y(y, index, extents)`, returns the target of a sample; None: there is no y.
        dtypes: of y, as `numpy.dtype.kind`.
        has_grid: y has the grid of x.

    Raises:
        InputError: the file holds something else.
    """
    try:
        with np.load(file, allow_pickle=False) as archive:
            arrays = dict(archive)
        x, y = arrays["x"], arrays["y"] if read_y else arrays["x"]
        of_sizes = arrays["sizes"].shape[1] if "sizes" in arrays else 3 if x.ndim == 5 else 2
        ndim = int(arrays.get("ndim", of_sizes))
    except Exception as error:  # of a damaged archive NumPy raises all kinds of exceptions
        raise InputError(f"{file} is no .npz with numbers x and targets y: {error!s:.200}") from None
    if x.ndim not in (ndim + 1, ndim + 2) or x.dtype.kind not in "buif" or len(y) != len(x):
        raise InputError(
            f"{file}: x is {x.dtype} {x.shape} and y {y.dtype} {y.shape}, expected equally many, and x "
            f"(N, *grid) or (N, *grid, C) with {ndim} axes of the grid; store ndim beside x for others"
        )
    is_odd = has_grid and y.shape[1 : ndim + 1] != x.shape[1 : ndim + 1]
    if read_y and (y.dtype.kind not in dtypes or is_odd):
        raise InputError(
            f"{file}: y is {y.dtype} {y.shape}, which is no target of this kind for x {x.shape}"
        )
    if read_y is read_columns:
        columns = y.reshape(len(y), -1).shape[1]
        names = arrays.get("names", np.array([f"y{k}" for k in range(columns)])).tolist()
        if len({*map(str, names)}) != columns:
            raise InputError(
                f"{file}: names are {names!s:.80}, expected one for each column of y {y.shape}"
            )
        read_y = partial(read_columns, names=[*map(str, names)])
    x = x if x.ndim == ndim + 2 else x[..., None]
    sizes = arrays.get("sizes", np.full((len(x), ndim), x.shape[1:-1]))
    if sizes.shape != (len(x), ndim) or sizes.dtype.kind not in "iu":
        raise InputError(
            f"{file}: sizes is {sizes.dtype} {sizes.shape}, expected integers {(len(x), ndim)}"
        )
    return [
        Sample(f"sample {k}", partial(_read_array, x, y, k, tuple(extents), read_y), f"sample {k}", False)
        for k, extents in enumerate(sizes.tolist())
    ]


def _read_array(
    x: Array, y: Array, k: int, extents: Extents, read_y: Callable[..., Any] | None
) -> tuple[Array, Any]:
    if any(not 0 < extent <= most for extent, most in zip(extents, x.shape[1:-1], strict=True)):
        raise InputError(f"its size {extents} does not fit into {x.shape[1:-1]}")
    with np.errstate(over="ignore"):  # infinite numbers are refused later
        sample = x[k][tuple(map(slice, extents))].astype(np.float32)
        return sample, read_y(y, k, extents) if read_y else None


def read_name(y: Array, k: int, extents: Extents) -> str:
    """A name, a text or a number of y (N,) as a text."""
    try:
        return composed(str(y[k].decode() if y.dtype.kind == "S" else y[k]))
    except ValueError:
        raise InputError("its name is not Unicode") from None


def read_columns(y: Array, k: int, extents: Extents, names: Sequence[str] = ()) -> dict[str, Any]:
    """The numbers of y (N,) or (N, K) by their names."""
    return dict(zip(names, np.ravel(y[k]).tolist(), strict=True))
