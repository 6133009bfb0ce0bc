"""Output of the command line: data on stdout, messages on stderr, errors as one line. All that is printed
is escaped, as names may come from strangers."""

from __future__ import annotations

import logging
import shlex
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from itertools import pairwise
from typing import Any

from mdlstm_tk._util.text import printable, to_json

LINE_SECONDS = 30  # between two lines of progress where stderr is no terminal
TABLE_WIDTH = 500  # columns; a table that is wider than the terminal reads better unfolded

level = 1  # of messages: 0 with -q, 2 with -v
debug = False
words: Sequence[str] = ()  # of this call


def note(message: str, least: int = 1) -> None:
    """Print a message on stderr, if the level is at least this: 0 even with -q, 2 only with -v."""
    if level >= least:
        lines = message.rstrip("\n").split("\n") if debug and least == 0 else [message]  # of a traceback
        sys.stderr.write("".join(f"{printable(line)}\n" for line in lines))


class _Notes(logging.Handler):
    """Prints what the package logs as notes."""

    def emit(self, record: logging.LogRecord) -> None:
        note(f"{'warning: ' if record.levelno >= logging.WARNING else ''}{record.getMessage()}")


def show_log() -> None:
    """Print what the package logs."""
    log = logging.getLogger("mdlstm_tk")
    log.handlers, log.propagate = [_Notes()], False
    log.setLevel(logging.INFO)


def on_terminal() -> bool:
    """True if a person watches stderr, who wants progress bars and pictures."""
    return level > 0 and sys.stderr.isatty()


def print_json(value: Any) -> None:
    """Print a value as JSON on stdout, where NaN and infinity are null."""
    sys.stdout.write(to_json(value, indent=2) + "\n")


def next_command(*command: object) -> None:
    """Name the command to type next, with the files that this one has imported."""
    imports = [word for pair in pairwise(words) if pair[0] == "--import" for word in pair]
    imports += [word for word in words if word.startswith("--import=")]
    note(f"next: {shlex.join(['mdlstm', *imports, *map(str, command)])}")


def table(
    columns: Sequence[str], rows: Sequence[Sequence[object]], title: str = "", texts: int = 1
) -> None:
    """Print a table on stdout. The first `texts` columns hold texts, the others numbers."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    if title:
        sys.stdout.write(printable(title) + "\n")
    grid = Table(box=None, pad_edge=False, header_style="")
    for k, column in enumerate(columns):
        grid.add_column(Text(printable(column)), justify="left" if k < texts else "right")
    for row in rows:
        grid.add_row(*(Text(printable(cell)) for cell in row))
    Console(width=None if sys.stdout.isatty() else TABLE_WIDTH, highlight=False).print(grid)


@contextmanager
def progress(total: float, done: float = 0, unit: str = "") -> Iterator[Callable[[float, str], None]]:
    """Show progress on stderr: a bar on a terminal, else a line now and then. Yields `show(done, text)`."""
    if not on_terminal():
        last, tenth = time.monotonic(), 10 * done // total

        def show(done: float, text: str) -> None:
            nonlocal last, tenth
            now, part = time.monotonic(), 10 * done // total
            if part > tenth or now - last > LINE_SECONDS:
                last, tenth = now, part
                note(f"{done:g}/{total:g} {unit}  {text}")

        yield show
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    counts = MofNCompleteColumn(), TextColumn(unit)
    text = TextColumn("{task.fields[text]}", markup=False)
    with Progress(BarColumn(), *counts, TimeRemainingColumn(), text, console=Console(stderr=True)) as bar:
        task = bar.add_task("", total=total, completed=int(done), text="")
        yield lambda done, text: bar.update(task, completed=done, text=printable(text))
