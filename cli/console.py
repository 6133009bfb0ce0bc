"""What a person sees: data on stdout, everything else on stderr, errors as one line."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.console import Console

WIDEST = 200  # of a table: one that is wider than the terminal is better read unfolded


@cache
def err() -> Console:
    """The console on stderr. Rich is imported when it is first needed: a quiet `infer` never does."""
    from rich.console import Console

    return Console(stderr=True, highlight=False, emoji=False, soft_wrap=True)


def note(message: str) -> None:
    """Tell the user something, on stderr."""
    err().print(message, markup=False)


def next_command(command: str) -> None:
    """Name the command to type next."""
    err().print(f"next: {command}", style="bold", markup=False)


def quoted(path: Path | str) -> str:
    """As a shell takes it."""
    import shlex

    return shlex.quote(str(path))


def table(
    columns: Sequence[str], rows: Sequence[Sequence[str]], title: str | None = None, texts: int = 1
) -> None:
    """Print a table to stdout; so many columns from the left are texts, the others numbers."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    grid = Table(title_justify="left", box=None, pad_edge=False, header_style="bold")
    grid.title = title and Text(title)  # Text: brackets are no markup
    for index, column in enumerate(columns):
        grid.add_column(column, justify="left" if index < texts else "right", no_wrap=True)
    for row in rows:
        grid.add_row(*(Text(printable(cell)) for cell in row))
    Console(highlight=False, emoji=False, width=WIDEST).print(grid)


def printable(text: str) -> str:
    """Without what would play with the terminal: a model's metadata may come from anybody."""
    return "".join(character if character.isprintable() else "?" for character in text)


def print_json(value: Any) -> None:
    """Print a value as JSON to stdout."""
    sys.stdout.write(json.dumps(value, indent=2) + "\n")


@contextmanager
def progress(total: int, done: int = 0) -> Iterator[Callable[[int, str], None]]:
    """A live line on stderr: call it with steps done and a text. On no terminal, a line now and then."""
    if not err().is_terminal:
        every = max(1, total // 10)

        def report(step: int, text: str) -> None:
            if step % every == 0 or step == total:
                note(f"{step}/{total}  {text}")

        yield report
        return
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[text]}", markup=False),
        TextColumn("ETA"),
        TimeRemainingColumn(compact=True),
    )
    with Progress(*columns, console=err()) as bar:
        task = bar.add_task("", total=total, completed=done, text="")
        yield lambda step, text: bar.update(task, completed=step, text=text)
