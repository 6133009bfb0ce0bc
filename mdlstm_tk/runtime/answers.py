"""Outputs of a network as answers of its kind: rows for tables, masks, or numbers."""

from __future__ import annotations

import csv
import io
from collections.abc import Collection, Mapping, Sequence
from inspect import signature
from typing import IO, Any

import numpy as np

from mdlstm_tk._util.text import printable, to_json
from mdlstm_tk.errors import InputError, MDLSTMError
from mdlstm_tk.io import Array
from mdlstm_tk.io.metadata import Metadata
from mdlstm_tk.kinds import kind_named
from mdlstm_tk.kinds.kind import Row

TABLES = ("tsv", "csv", "json")
OF_FILES = ("sizes", "widths")  # options of `Kind.decode` that no user gives


def options_of(metadata: Metadata) -> list[str]:
    """The names of the options that the kind of a model takes."""
    return [*signature(kind_named(metadata.kind).decode).parameters][2:]


def check_options(metadata: Metadata, options: Collection[str]) -> None:
    """Refuse an option without an effect on the answers of a model."""
    own = [name for name in options_of(metadata) if name not in (*OF_FILES, "options")]
    for name in options:
        if name not in own:
            kind, known = metadata.kind or "None", ", ".join(own) or "none"
            raise InputError(f"{name} is no option for answers of kind {kind}, which takes: {known}")


def decode(y: Array | Mapping[str, Array], metadata: Metadata, **options: Any) -> list[Row] | Array:
    """Decode what `Session` returned, with or without a batch axis, by the kind of the model's task.

    Args:
        y: the output; of several, the first one counts.
        metadata: of the model.
        **options: of the kind: top and probabilities of "classify"; probabilities of "tag" and "segment";
            beam, lm and widths of "transcribe"; sizes of "density".

    Returns:
        A row for each sample, such as {"label": "7", "probability": 0.93}; of "segment" a mask; of other
        kinds y.

    Raises:
        InputError: y holds NaN where it should give an answer, or an option is none of this kind.
        MDLSTMError: y has another shape than the metadata say.
    """
    check_options(metadata, options.keys() - {*OF_FILES})
    kind = kind_named(metadata.kind)
    y = np.asanyarray(y[metadata.output_names[0]] if isinstance(y, Mapping) else y)
    axes = len(kind.axes.split(",")) if kind.axes else metadata.ndim + 1
    is_batch = y.ndim > axes
    y = y if is_batch else y[None]
    if kind.axes and (y.ndim != axes + 1 or y.shape[-1] != metadata.outputs):
        raise MDLSTMError(f"y has shape {y.shape}, which is none of kind {metadata.kind}")
    value: Any = kind.decode(y, metadata, **options)
    return value if kind.answers == "rows" or is_batch else value[0]  # type: ignore[no-any-return]


class Table:
    """A table of rows that is written while it grows: tsv, csv with a heading, or json, a list of objects.

    Values that are lists are in json alone. Names of a stranger's model may hold commands for a terminal.

    Attributes:
        count: rows that were written.
    """

    def __init__(self, file: IO[bytes], form: str) -> None:
        self._file, self._form, self.count = file, form, 0

    def add(self, rows: Sequence[Row]) -> None:
        """Write rows, which have equal columns."""
        if not rows:
            return
        if self._form == "json":
            starts = ("[\n" if self.count + k == 0 else ",\n" for k in range(len(rows)))
            text = "".join(start + to_json(row) for start, row in zip(starts, rows, strict=True))
        else:
            plain = [
                {k: v for k, v in row.items() if not isinstance(v, list | tuple | dict)} for row in rows
            ]
            texts = [["" if v is None else printable(v) for v in row.values()] for row in plain]
            if self._form == "tsv":
                text = "".join("\t".join(cells) + "\n" for cells in texts)
            else:
                heading = [[printable(name) for name in plain[0]]]
                buffer = io.StringIO()
                csv.writer(buffer, lineterminator="\n").writerows(texts if self.count else heading + texts)
                text = buffer.getvalue()
        self.count += len(rows)
        self._file.write(text.encode())

    def end(self) -> None:
        if self._form == "json":
            self._file.write(b"\n]\n" if self.count else b"[]\n")
