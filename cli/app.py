"""The frame of the command line: the verbs, and how errors become one line and an exit code.

Exit codes: 0 ok, 1 runtime, 2 usage, 3 parity, 4 device unavailable, 130 interrupted.
"""

from __future__ import annotations

import os
import sys
import time
import traceback
import warnings
from io import TextIOWrapper, UnsupportedOperation
from typing import Annotated

import typer

from mdlstm_tk._util.text import printable
from mdlstm_tk._version import __version__
from mdlstm_tk.cli.console import detail, error, verbosity, warn
from mdlstm_tk.cli.help import HelpfulCommand, HelpfulGroup
from mdlstm_tk.cli.interrupts import EXIT_CODE, interrupts
from mdlstm_tk.cli.options import Import, import_files, imported, with_kind_options, with_messages
from mdlstm_tk.errors import MDLSTMError
from mdlstm_tk.kinds.rooms import load, of_rooms

PANELS = {
    "Train": ("train", "settings", "report", "compare"),
    "Export and run": ("export", "infer", "verify", "info"),
    "Try and check": ("demo", "doctor"),
}
_OWN = {verb: (panel, f"cli.{verb}:{verb}") for panel, verbs in PANELS.items() for verb in verbs}
# The panel and the place of each verb, in the order of the help.
VERBS: dict[str, tuple[str, str]] = dict(
    sorted((_OWN | of_rooms("verbs")).items(), key=lambda item: [*PANELS].index(item[1][0]))
)


def _version(is_given: bool) -> None:
    if is_given:
        sys.stdout.write(f"mdlstm-tk {__version__}\n")
        raise typer.Exit


def _root(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
    import_: Import = None,
) -> None:
    """Multi-dimensional LSTMs: train in PyTorch, export to ONNX, run anywhere."""


def typer_app(verb: str | None = None) -> typer.Typer:
    """The command `mdlstm` with all verbs, or one verb alone: importing all takes longer than `infer`
    takes."""
    app = typer.Typer(
        cls=HelpfulGroup,
        callback=None if verb else _root,
        add_completion=not verb,
        pretty_exceptions_enable=False,
        context_settings={"help_option_names": ["-h", "--help"]},
    )
    for name, (panel, place) in VERBS.items():
        if verb in (None, name):
            function = with_messages(with_kind_options(load(place)))
            app.command(name, cls=HelpfulCommand, rich_help_panel=panel)(function)
    return app


def run(arguments: list[str]) -> int:
    """Run `mdlstm`; every error that a user can cause ends as one line on stderr.

    Returns:
        The exit code.
    """
    verbosity.quiet = verbosity.verbose = verbosity.debug = False
    imported.clear()
    prepare_output()
    return _run(arguments or ["--help"])


def prepare_output() -> None:
    """Let this process print as `mdlstm` does."""
    # The shell may have closed a stream: then messages are lost, and data cannot be read or written.
    sys.stderr = sys.stderr or open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115
    sys.stdout = sys.stdout or open(os.devnull, encoding="utf-8")  # noqa: SIM115
    sys.stdin = sys.stdin or open(os.devnull, encoding="utf-8")  # noqa: SIM115
    if isinstance(sys.stdout, TextIOWrapper):  # what programs read is UTF-8 everywhere
        encoding = sys.stdout.encoding if sys.stdout.isatty() else "utf-8"
        sys.stdout.reconfigure(encoding=encoding, errors="backslashreplace")
    warnings.filterwarnings("ignore", module="PIL")  # on damaged metadata of an image that can be read
    warnings.showwarning = lambda message, *_: warn(str(message))


def _run(arguments: list[str]) -> int:
    start = time.perf_counter()
    command = "mdlstm"
    try:
        import_files(arguments)
        if arguments[0] in VERBS:
            verb, *options = arguments
            command = f"mdlstm {verb}"
            code = typer_app(verb)(options, prog_name=command, standalone_mode=False)
        else:
            code = typer_app()(arguments, prog_name=command, standalone_mode=False)
        sys.stdout.flush()
        detail(f"{command} took {time.perf_counter() - start:.2f} s{_peak_memory()}")
        if interrupts.received or code == EXIT_CODE:  # Typer returns this code
            raise KeyboardInterrupt
        return code if isinstance(code, int) else 0
    except MDLSTMError as failure:
        return _fail(str(failure), failure.exit_code)
    except typer.TyperException as failure:
        message = failure.format_message().replace("Value error, ", "").rstrip(".")  # pydantic's prefix
        return _fail(f"{message} (see: {command} --help)", 2)
    except BrokenPipeError:
        # The reader of stdout has gone. Point stdout nowhere, or Python complains again at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except (KeyboardInterrupt, typer.Abort):
        return _fail("interrupted", EXIT_CODE)
    except UnsupportedOperation:
        return _fail("stdout is closed, but the result is written there; redirect it with > or use -o", 1)
    except OSError as failure:
        where = f"{failure.filename}: " if failure.filename else ""
        return _fail(f"{where}{failure.strerror or failure}", 1)
    except (MemoryError, RuntimeError) as failure:
        # torch raises RuntimeError: "CUDA out of memory. …", "…: can't allocate memory: …"
        messages = ("out of memory", "can't allocate memory")
        if not isinstance(failure, MemoryError) and not any(text in str(failure) for text in messages):
            raise
        return _fail("out of memory; use a smaller size, batch or hidden size", 1)


def _fail(message: str, code: int) -> int:
    if interrupts.received:  # which another package may have turned into an error of its own
        interrupts.end()
        message, code = "interrupted", EXIT_CODE
    if verbosity.debug:
        # each message in the traceback takes one line, even if it holds line breaks
        for part in traceback.format_exception(*sys.exc_info()):
            is_code = part.startswith(('  File "', "Traceback (most", "\n"))
            for line in part.rstrip("\n").split("\n") if is_code else [part.rstrip("\n")]:
                sys.stderr.write(f"{printable(line)}\n")
    error(message)
    return code


def _peak_memory() -> str:
    try:
        import resource
    except ImportError:  # Windows
        return ""
    scale = 1 if sys.platform == "darwin" else 1024  # ru_maxrss counts bytes or KiB
    return f", peak memory {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * scale / 2**20:.0f} MiB"
