"""Options that several verbs have."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from mdlstm_tk._util.sizes import parse_resize

Json = Annotated[bool, typer.Option("--json", help="Print the result as JSON on stdout.")]
Force = Annotated[bool, typer.Option("--force", help="Replace what exists.")]
DEVICE = "auto: CUDA if it works, else the CPU."
Device = Annotated[str, typer.Option(metavar="auto|cpu|cuda|cuda:N", help=DEVICE)]
Trusted = Annotated[
    bool, typer.Option("--trusted", help="Allow a file of yours the operators outside the list.")
]
RUN = "Run folder.  (default: the newest)"
RunFolder = Annotated[Path | None, typer.Argument(metavar="RUN", help=RUN)]


def output(help: str, metavar: str = "PATH") -> typer.models.OptionInfo:
    """The option -o of a verb."""
    option: typer.models.OptionInfo = typer.Option("--output", "-o", metavar=metavar, help=help)
    return option


def resize_option() -> typer.models.OptionInfo:
    """The option --resize of a verb that reads images."""
    text = "Size of images, as 64, 48x64, or 48x* for any width.  (default: as in training)"
    option: typer.models.OptionInfo = typer.Option(metavar="SIZE", parser=parse_resize, help=text)
    return option
