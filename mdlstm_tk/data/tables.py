"""Samples from a folder of images and a CSV table, which has a row for each image."""

from __future__ import annotations

import csv
import io
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from mdlstm_tk._util.text import composed, counted
from mdlstm_tk.data.folders import find_images, image_sample, left_out_of, read_text
from mdlstm_tk.data.spec import RawSample
from mdlstm_tk.errors import InputError


def list_table(
    path: Path,
    name: str,
    read: Callable[[dict[str, str]], Any],
    expected: str,
    columns: Sequence[str] = (),
) -> tuple[list[RawSample], list[str]]:
    """List the images of a table, and say how many others there are. A bad row is a sample that cannot be
    used.

    Args:
        path: the folder with images, at any depth, and the table.
        name: of the table, which begins with a row of names, the first of which is "file".
        read: makes the target of an image from its row, without the file.
        expected: the folder, in words.
        columns: the names after "file"; () for any.

    Raises:
        InputError: there is no table, or its first row is another one.
    """
    table = path / name
    if not table.is_file():
        raise InputError(f"{path}: {name} is missing; expected {expected}")
    return list_rows(path, name, _read_rows(table, read, list(columns)))


class Row(NamedTuple):
    """A row of a table that names an image.

    Attributes:
        number: of its line.
        image: the path of the image, from the folder of the table on.
        reason: why the row cannot be used, or "".
        read: returns the target of the image.
    """

    number: int
    image: str
    reason: str
    read: Callable[[], Any]


def list_rows(path: Path, name: str, rows: Iterable[Row]) -> tuple[list[RawSample], list[str]]:
    """The samples of the rows of a table, one that cannot be used for a bad row or an image that a row
    before names as well, by whatever path; and a note of the images below the folder that no row names."""
    samples: list[RawSample] = []
    first_of: dict[str, int] = {}
    for number, image, reason, read in rows:
        first = first_of.setdefault(os.path.realpath(path / image), number)
        if first != number and not reason:
            reason = f"line {first} names {image} as well; delete one of them"
        samples.append(
            RawSample.unusable(f"{name}, line {number}", reason)
            if reason
            else image_sample(path, path / image, read)
        )
    others = [file for file in find_images(path) if os.path.realpath(file) not in first_of]
    return samples, left_out_of(f"images that {name} does not name", others, path)


def _read_rows(table: Path, read: Callable[[dict[str, str]], Any], columns: list[str]) -> Iterator[Row]:
    """The rows of a CSV table after its first one.

    Raises:
        InputError: the first row is another one, or the file breaks.
    """
    rows = csv.reader(io.StringIO(read_text(table), newline=""), strict=True)
    try:
        header = [composed(cell.strip()) for cell in next(rows, [])]
        names = header[1:]
        is_known = names == columns if columns else bool(names) and len({*names} - {""}) == len(names)
        if header[:1] != ["file"] or not is_known:
            given = ",".join(columns) or "different names of columns"
            raise InputError(
                f"{table}: its first row is {','.join(header)[:80]!r}, expected file,{given}, with commas "
                "between cells"
            )
        for cells in filter(None, rows):
            reason = ""
            if len(cells) != len(header):
                reason = f"it has {counted(len(cells), 'cell')}, but the first row has {len(header)}"
            row = dict(zip(names, map(composed, cells[1:]), strict=False))
            label = f"{table.name}, line {rows.line_num}"
            yield Row(rows.line_num, cells[0], reason, partial(_read_target, read, row, label))
    except csv.Error as error:
        raise InputError(f"{table}, line {rows.line_num}: {error}") from None


def _read_target(read: Callable[[dict[str, str]], Any], row: dict[str, str], label: str) -> Any:
    try:
        return read(row)
    except InputError as error:
        raise InputError(f"{label}: {error}") from None
