"""Output of the command line: data on stdout, messages on stderr, errors as one line.

All functions escape what they print, as names may come from strangers; callers pass them as they are.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cache
from math import inf
from typing import TYPE_CHECKING, Any, Literal

from mdlstm_tk._util.sizes import format_size
from mdlstm_tk._util.text import printable, shell_quoted, to_json
from mdlstm_tk.errors import Argument, Export, Message

if TYPE_CHECKING:
    from rich.console import Console

LINE_SECONDS = 30  # between two lines of progress, at most, where stderr is no terminal
BAR_SECONDS = 0.1  # between two updates of a progress bar
TABLE_WIDTH = 500  # columns; a table that is wider than the terminal reads better unfolded


@dataclass
class Verbosity:
    """The amount that a verb prints on stderr; set by the options -q, -v and --debug.

    Attributes:
        quiet: print errors only.
        verbose: print details, too.
        debug: print the traceback of an error instead of one line.
        flags: the options of the verb, by the names of the library's arguments.
    """

    quiet: bool = False
    verbose: bool = False
    debug: bool = False
    flags: Mapping[str, str] = field(default_factory=dict)


verbosity = Verbosity()


@cache
def err() -> Console:
    """The Rich console on stderr. Rich takes long to import; a plain `infer` does without it."""
    from rich.console import Console

    return Console(stderr=True, highlight=False, emoji=False, soft_wrap=True)


def on_terminal() -> bool:
    """True if a person watches stderr, who wants progress bars and pictures."""
    return not verbosity.quiet and sys.stderr.isatty()


def with_flags(message: str) -> str:
    """A message of the library with the flags of the verb where it names arguments."""
    parts = message.parts if isinstance(message, Message) else (message,)
    return "".join(part if isinstance(part, str) else _flag(part) for part in parts)


def _flag(argument: Argument | Export) -> str:
    if isinstance(argument, Export):
        flags = {name: f"--{name.replace('_', '-')}" for name in argument.options}
        flags |= {"grid": "--size", "path": "-o"}
        options = [_with_value(flags[name], value) for name, value in argument.options.items()]
        return " ".join(["mdlstm export", shell_quoted(argument.run), *options])
    option = verbosity.flags.get(argument.name)
    if option is None:
        is_set = "settings" in verbosity.flags and _is_setting(argument.name)
        return f"--set {argument}" if is_set else str(argument)
    return _with_value(option, argument.value)


def _with_value(option: str, value: Any) -> str:
    if value is None or value is True:
        return option
    text = format_size(value) if isinstance(value, tuple) else str(value)
    return f"{option} {text if text == '-' else shell_quoted(text)}"  # - is no path


def _is_setting(name: str) -> bool:
    from mdlstm_tk.training.config import list_settings

    return name in [row.key for row in list_settings()]


def error(message: str, label: str = "error") -> None:
    """Print an error as one line on stderr, even with -q."""
    sys.stderr.write(f"{label}: {printable(with_flags(message))}\n")


def note(message: str) -> None:
    """Print a message as one line on stderr, unless -q is given."""
    if not verbosity.quiet:
        sys.stderr.write(printable(with_flags(message)) + "\n")


def warn(message: str) -> None:
    """Print a warning as one line on stderr, unless -q is given."""
    note(f"warning: {with_flags(message)}")


def detail(message: str) -> None:
    """Print a message as one line on stderr if -v is given."""
    if verbosity.verbose:
        note(message)


def heading(message: str) -> None:
    """Print a message in bold, with colours on a terminal, unless -q is given."""
    bold, plain = ("\033[1m", "\033[0m") if on_terminal() and not os.environ.get("NO_COLOR") else ("", "")
    if not verbosity.quiet:
        sys.stderr.write(f"{bold}{printable(message)}{plain}\n")


def next_command(command: str) -> None:
    """Name the command to type next. Paths in it must be `shell_quoted`, so that it can be pasted."""
    heading(f"next: {command}")


def table(
    columns: Sequence[str],
    rows: Sequence[Sequence[str]],
    title: str | None = None,
    texts: int = 1,
    folds: bool = False,
) -> None:
    """Print a table on stdout. The first `texts` columns hold texts, the others numbers. If it `folds`, the
    last column is folded at the width of a terminal."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    style = "" if os.environ.get("NO_COLOR") else "bold"  # Rich leaves out colours alone
    grid = Table(title_justify="left", box=None, pad_edge=False, header_style=style)
    grid.title = title and Text(printable(title))  # as Text, brackets are not read as markup
    for index, column in enumerate(columns):
        justify: Literal["left", "right"] = "left" if index < texts else "right"
        is_folded = folds and index == len(columns) - 1
        grid.add_column(Text(printable(column)), justify=justify, no_wrap=not is_folded)
    for row in rows:
        grid.add_row(*(Text(printable(cell)) for cell in row))
    width = None if folds and sys.stdout.isatty() else TABLE_WIDTH
    Console(highlight=False, emoji=False, width=width).print(grid)


def print_json(value: Any) -> None:
    """Print a value as JSON on stdout, where NaN and infinity are null."""
    sys.stdout.write(to_json(value, indent=2) + "\n")


@contextmanager
def progress(
    total: int, done: int = 0, lines: int = 10, counts: Callable[[int], str] | None = None
) -> Iterator[Callable[..., None]]:
    """Show progress on stderr: a bar on a terminal, else lines; with -q nothing.

    Args:
        total: number of steps.
        done: steps done before.
        lines: about how many lines stand for all steps, besides one after each 30 s without a line.
        counts: says how many steps are done; None: as in 3/10.

    Yields:
        A function `show(step, text, seconds_left=None)`, which shows that `step` steps are done. A `text`
        that is a function is called only when its result is printed. None: the time left is unknown.
    """
    counts = counts or (lambda step: f"{step}/{total}")
    if not on_terminal():
        interval = max(1, total // lines) if lines else inf
        last_step, last_time = done, time.monotonic()

        def write_line(step: int, text: str | Callable[[], str], seconds_left: float | None = None) -> None:
            nonlocal last_step, last_time
            previous, last_step, now = last_step, step, time.monotonic()
            ends = lines and step == total > previous
            if ends or step // interval > previous // interval or now - last_time >= LINE_SECONDS:
                last_time = now
                shown = text if isinstance(text, str) else text()
                note(f"{counts(step)}  {shown}{_eta(seconds_left)}")

        yield write_line
        return
    from rich.progress import BarColumn, Progress, TextColumn

    with Progress(BarColumn(), TextColumn("{task.fields[text]}", markup=False), console=err()) as bar:
        task = bar.add_task("", total=total, completed=done, text=counts(done))
        last_update = 0.0

        def update_bar(step: int, text: str | Callable[[], str], seconds_left: float | None = None) -> None:
            nonlocal last_update
            if (now := time.perf_counter()) - last_update > BAR_SECONDS or step == total:
                last_update, line = now, text if isinstance(text, str) else text()
                shown = f"{counts(step)}  {printable(line)}{_eta(seconds_left)}"
                bar.update(task, completed=step, text=shown)

        yield update_bar


def _eta(seconds: float | None) -> str:
    """The time left as h:mm:ss or m:ss; "" if it is not known or below a second."""
    if not seconds or round(seconds) < 1:
        return ""
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"  ETA {hours}:{minutes:02}:{seconds:02}" if hours else f"  ETA {minutes}:{seconds:02}"
