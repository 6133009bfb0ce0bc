"""The command line's frame: the verbs, and how errors become one line and an exit code.

Exit codes: 0 ok, 1 runtime, 2 usage, 3 parity, 4 device unavailable, 130 interrupted.
"""

from __future__ import annotations

import os
import sys
from importlib import import_module
from io import UnsupportedOperation
from typing import Annotated

import typer

from mdlstm_tk._version import __version__
from mdlstm_tk.cli.console import note
from mdlstm_tk.errors import MDLSTMError

VERBS = ("train", "report", "export", "infer", "verify", "info", "compare", "bench", "doctor", "demo")


def _version(wanted: bool) -> None:
    if wanted:
        sys.stdout.write(f"mdlstm-tk {__version__}\n")
        raise typer.Exit


def _root(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Show the version.")
    ] = False,
) -> None:
    """Multi-dimensional LSTMs: train in PyTorch, export to ONNX, run anywhere."""


def _app(arguments: list[str]) -> typer.Typer:
    """The command. Where a verb is called, it has that verb alone: making the others' options takes Typer
    longer than `infer` takes to run a model."""
    app = typer.Typer(
        callback=_root,
        add_completion=False,
        pretty_exceptions_enable=False,
        context_settings={"help_option_names": ["-h", "--help"]},
    )
    for verb in VERBS if arguments[0] not in VERBS else arguments[:1]:
        app.command(verb)(getattr(import_module(f"mdlstm_tk.cli.{verb}"), verb))
    return app


def main(arguments: list[str] | None = None) -> None:
    """Run `mdlstm` and exit. All that a user can cause ends as one line on stderr."""
    arguments = sys.argv[1:] if arguments is None else arguments
    # Where the shell has closed one: messages are lost, and data cannot be written.
    sys.stderr = sys.stderr or open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115
    sys.stdout = sys.stdout or open(os.devnull, encoding="utf-8")  # noqa: SIM115
    sys.exit(_run(arguments or ["--help"]))


def _run(arguments: list[str]) -> int:
    try:
        code = _app(arguments)(arguments, prog_name="mdlstm", standalone_mode=False)
        sys.stdout.flush()
        return code if isinstance(code, int) else 0
    except MDLSTMError as error:
        return _fail(str(error), error.exit_code)
    except typer.TyperException as error:
        verb = f"{arguments[0]} " if arguments[0] in VERBS else ""
        return _fail(f"{error.format_message()} (see: mdlstm {verb}--help)", 2)
    except BrokenPipeError:
        # Whoever read stdout has gone. Point it nowhere, or Python complains again at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except (KeyboardInterrupt, typer.Abort):
        return _fail("interrupted", 130)
    except UnsupportedOperation:
        return _fail("stdout is closed, and the result would go there; give it a place with > or -o", 1)
    except OSError as error:
        where = f"{error.filename}: " if error.filename else ""
        return _fail(f"{where}{error.strerror or error}", 1)
    except MemoryError:
        return _fail("out of memory; use a smaller size, batch or hidden size", 1)


def _fail(message: str, code: int) -> int:
    note("error: " + " ".join(message.split()))
    return code
