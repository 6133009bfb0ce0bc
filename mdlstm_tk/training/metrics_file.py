"""`metrics.jsonl`: one record per step, with loss, errors and learning rate, as a line of JSON.

A run folder may come from a stranger, so each record is checked when it is read: what follows can rely on
numbers by name, and on the same names in all records.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from mdlstm_tk._util.regular_files import open_regular, parse_json
from mdlstm_tk.errors import InputError

Record = dict[str, Any]  # "step", "loss", "lr", errors by name; "validation" of some: errors by name

MAX_FILE_BYTES = 2**30
MAX_LINE_BYTES = 2**14
MAX_NAMES = 20  # in a record
MAX_STEPS = 2**53
MAX_VALUE = 1e100
NAME = re.compile(r"[A-Za-z]\w{0,63}", re.ASCII)


def read_records(path: Path) -> Iterator[Record]:
    """The records of a file, in the order of their steps; none if there is no file.

    The last line may be incomplete, as a killed process leaves it; it is left out.

    Raises:
        InputError: the file cannot be read, is too large, or a line is no record or does not go with the
            ones before it.
    """
    if not path.exists():
        return
    first: Record | None = None
    last_step, total = 0, 0
    with open_regular(path) as file:
        for number, line in enumerate(iter(lambda: file.readline(MAX_LINE_BYTES + 1), b""), 1):
            total += len(line)
            label = f"{path}, line {number}"
            if len(line) > MAX_LINE_BYTES or total > MAX_FILE_BYTES:
                limit = MAX_LINE_BYTES if len(line) > MAX_LINE_BYTES else MAX_FILE_BYTES
                raise InputError(f"{label}: more than {limit} bytes, expected records of a training run")
            try:
                record = parse_json(line, label)
            except InputError:
                if not line.endswith(b"\n"):
                    return
                raise
            _check(record, label, last_step)
            first = first or record
            if names_of(record) != names_of(first):
                raise InputError(f"{label} has other names than the first record; {DELETE}")
            last_step = record["step"]
            yield record


def metric_names(records: Sequence[Mapping[str, Any]]) -> list[str]:
    """The names of loss and errors in the records of `metrics.jsonl`; "loss" if there are no records."""
    keys = records[-1] if records else ("loss",)
    return [key for key in keys if key not in ("step", "lr", "validation")]


DELETE = "delete the file to go on without the earlier steps"


def names_of(record: Mapping[str, Any]) -> set[str]:
    """The names in a record that all records have."""
    return set(record) - {"validation"}


def _check(record: Any, label: str, last_step: int) -> None:
    """Check one record.

    Raises:
        InputError: it is no record, or its step does not come after `last_step`.
    """
    if not isinstance(record, dict) or not {"step", "loss", "lr"} <= set(record) or len(record) > MAX_NAMES:
        raise InputError(f"{label} is no record of a training step; {DELETE}")
    step, validation = record["step"], record.get("validation", {})
    if type(step) is not int or not last_step < step <= MAX_STEPS:
        raise InputError(f"{label}: step must be a whole number above {last_step}, got {step!r:.80}")
    if not isinstance(validation, dict) or len(validation) > MAX_NAMES:
        raise InputError(f"{label}: validation must be errors by name, got {validation!r:.80}")
    numbers = {name: value for name, value in record.items() if name not in ("step", "validation")}
    for name, value in (*numbers.items(), *validation.items()):
        if not NAME.fullmatch(name):
            raise InputError(f"{label}: {name!r:.80} is no name of a loss or an error")
        is_number = type(value) in (int, float)
        if not is_number or (type(value) is int and abs(value) > MAX_VALUE):
            raise InputError(f"{label}: {name} must be a number, got {value!r:.80}")
        if abs(value) > MAX_VALUE and abs(value) != float("inf"):
            raise InputError(f"{label}: {name} must be at most {MAX_VALUE:g}, got {value!r:.80}")
