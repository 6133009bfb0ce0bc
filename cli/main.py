"""The command line's frame: the verbs, and how errors become one line and an exit code.

Exit codes: 0 ok, 1 runtime, 2 usage, 3 parity, 4 device unavailable, 130 interrupted.
"""

from __future__ import annotations

import os
import sys
from typing import Annotated

import typer

from mdlstm_tk._version import __version__
from mdlstm_tk.cli.compare import compare
from mdlstm_tk.cli.console import note
from mdlstm_tk.cli.demo import demo
from mdlstm_tk.cli.export import export
from mdlstm_tk.cli.infer import infer
from mdlstm_tk.cli.info import info
from mdlstm_tk.cli.train import train
from mdlstm_tk.cli.verify import verify
from mdlstm_tk.errors import MDLSTMError

app = typer.Typer(
    help="Multi-dimensional LSTMs: train in PyTorch, export to ONNX, run anywhere.",
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
for verb in (train, export, infer, verify, info, compare, demo):
    app.command()(verb)


def _version(wanted: bool) -> None:
    if wanted:
        sys.stdout.write(f"mdlstm-tk {__version__}\n")
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Show the version.")
    ] = False,
) -> None:
    pass


def main(arguments: list[str] | None = None) -> None:
    """Run `mdlstm` and exit. All that a user can cause ends as one line on stderr."""
    arguments = sys.argv[1:] if arguments is None else arguments
    sys.exit(_run(arguments or ["--help"]))


def _run(arguments: list[str]) -> int:
    try:
        code = app(arguments, prog_name="mdlstm", standalone_mode=False)
        sys.stdout.flush()
        return code if isinstance(code, int) else 0
    except MDLSTMError as error:
        return _fail(str(error), error.exit_code)
    except typer.TyperException as error:
        return _fail(f"{error.format_message()} (see: mdlstm {_verb(arguments)}--help)", 2)
    except BrokenPipeError:
        # Whoever read stdout has gone. Point it nowhere, or Python complains again at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except (KeyboardInterrupt, typer.Abort):
        return _fail("interrupted", 130)
    except OSError as error:
        where = f"{error.filename}: " if error.filename else ""
        return _fail(f"{where}{error.strerror or error}", 1)
    except MemoryError:
        return _fail("out of memory; use a smaller size, batch or hidden size", 1)


def _verb(arguments: list[str]) -> str:
    known = {command.callback.__name__ for command in app.registered_commands if command.callback}
    return f"{arguments[0]} " if arguments[0] in known else ""


def _fail(message: str, code: int) -> int:
    note("error: " + " ".join(message.split()))
    return code
