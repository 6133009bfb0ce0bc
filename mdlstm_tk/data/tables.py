"""Samples from a folder of images and a CSV table, which has a row for each image."""

from __future__ import annotations

import csv
import io
import os
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from mdlstm_tk._util.text import counted
from mdlstm_tk.data.folders import find_images, image_sample, left_out, read_text
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
    named: set[str] = set()
    samples = list(_list_rows(path, table, read, list(columns), named))
    others = [file for file in find_images(path) if os.path.relpath(file, path) not in named]
    return samples, left_out(f"images that {name} does not name", len(others))


def _list_rows(
    path: Path, table: Path, read: Callable[[dict[str, str]], Any], columns: list[str], named: set[str]
) -> Iterator[RawSample]:
    """Yield the sample of each row, and add the path that the row names to `named`."""
    rows = csv.reader(io.StringIO(read_text(table), newline=""), strict=True)
    try:
        header = [cell.strip() for cell in next(rows, [])]
        names = header[1:]
        is_known = names == columns if columns else bool(names) and len({*names} - {""}) == len(names)
        if header[:1] != ["file"] or not is_known:
            given = ",".join(columns) or "different names of columns"
            raise InputError(
                f"{table}: its first row is {','.join(header)[:80]!r}, expected file,{given}, with commas "
                "between cells"
            )
        first_line: dict[str, int] = {}
        for cells in rows:
            if not cells:
                continue
            label = f"{table.name}, line {rows.line_num}"
            named.add(os.path.relpath(path / cells[0], path))
            first = first_line.setdefault(os.path.realpath(path / cells[0]), rows.line_num)
            if len(cells) != len(header):
                reason = f"it has {counted(len(cells), 'cell')}, but the first row has {len(header)}"
                yield RawSample.unusable(label, reason)
            elif first != rows.line_num:
                yield RawSample.unusable(
                    label, f"line {first} names {cells[0]} as well; delete one of them"
                )
            else:
                row = dict(zip(header[1:], cells[1:], strict=True))
                yield image_sample(path, path / cells[0], partial(_read_target, read, row, label))
    except csv.Error as error:
        raise InputError(f"{table}, line {rows.line_num}: {error}") from None


def _read_target(read: Callable[[dict[str, str]], Any], row: dict[str, str], label: str) -> Any:
    try:
        return read(row)
    except InputError as error:
        raise InputError(f"{label}: ", error) from None
