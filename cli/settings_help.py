"""The table of settings below the help of a verb with --set."""

from __future__ import annotations

from rich.box import ROUNDED
from rich.console import Console
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from mdlstm_tk.training.config import list_settings


def print_settings() -> None:
    """Print every key of --set and config.toml with its default and its meaning, on stdout."""
    grid = Table.grid(padding=(0, 2))
    for row in list_settings():
        grid.add_row(Text(row.key, "bold cyan"), Text(row.default or "-", "dim"), Text(row.help))
    title = "Settings for --set KEY=VALUE and config.toml, with the defaults of the diagonal task"
    panel = Panel(grid, box=ROUNDED, border_style="dim", title=title, title_align="left")
    Console(emoji=False).print(panel)
