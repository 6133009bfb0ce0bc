"""The frame of the command line: the verbs, and how errors become one line and an exit code.

Exit codes: 0 ok, 1 runtime, 2 usage, 3 parity, 4 device unavailable, 130 interrupted.
"""

from __future__ import annotations

import os
import sys
import time
import traceback
import warnings
from importlib import import_module
from io import TextIOWrapper, UnsupportedOperation
from typing import Annotated

import typer

from mdlstm_tk._util.text import printable
from mdlstm_tk._version import __version__
from mdlstm_tk.cli.command import Root, Verb, with_verbosity
from mdlstm_tk.cli.console import detail, error, verbosity, warn
from mdlstm_tk.cli.options import Import, imported
from mdlstm_tk.errors import MDLSTMError

PANELS = {
    "Train": ("train", "sample", "report", "compare"),
    "Export and run": ("export", "infer", "verify", "info"),
    "Try and check": ("demo", "doctor", "bench"),
}
VERBS = tuple(verb for verbs in PANELS.values() for verb in verbs)


def _version(wanted: bool) -> None:
    if wanted:
        sys.stdout.write(f"mdlstm-tk {__version__}\n")
        raise typer.Exit


def _root(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
    import_: Import = None,
) -> None:
    """Multi-dimensional LSTMs: train in PyTorch, export to ONNX, run anywhere."""


def typer_app(arguments: list[str]) -> typer.Typer:
    """The command. If a verb is called, it has only that verb: Typer takes longer to build the options of
    all verbs than `infer` takes to run a model."""
    called = arguments[:1] if arguments[0] in VERBS else VERBS
    app = typer.Typer(
        cls=Root,
        callback=_root,
        add_completion=called is VERBS,
        pretty_exceptions_enable=False,
        context_settings={"help_option_names": ["-h", "--help"]},
    )
    for panel, verbs in PANELS.items():
        for verb in verbs:
            if verb in called:
                function = getattr(import_module(f"mdlstm_tk.cli.{verb}"), verb)
                app.command(verb, cls=Verb, rich_help_panel=panel)(with_verbosity(function))
    return app


def main(arguments: list[str] | None = None) -> None:
    """Run `mdlstm` and exit. Every error that a user can cause ends as one line on stderr."""
    arguments = sys.argv[1:] if arguments is None else arguments
    # The shell may have closed a stream: then messages are lost, and data cannot be written.
    sys.stderr = sys.stderr or open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115
    sys.stdout = sys.stdout or open(os.devnull, encoding="utf-8")  # noqa: SIM115
    verbosity.quiet = verbosity.verbose = verbosity.debug = False
    imported.clear()
    if isinstance(sys.stdout, TextIOWrapper):  # what programs read is UTF-8 everywhere
        encoding = sys.stdout.encoding if sys.stdout.isatty() else "utf-8"
        sys.stdout.reconfigure(encoding=encoding, errors="backslashreplace")
    warnings.filterwarnings("ignore", module="PIL")  # on damaged metadata of an image that can be read
    warnings.showwarning = lambda message, *_: warn(str(message))
    sys.exit(_run(arguments or ["--help"]))


def _run(arguments: list[str]) -> int:
    start = time.perf_counter()
    try:
        code = typer_app(arguments)(arguments, prog_name="mdlstm", standalone_mode=False)
        sys.stdout.flush()
        detail(f"{arguments[0]} took {time.perf_counter() - start:.2f} s{_peak_memory()}")
        return code if isinstance(code, int) else 0
    except MDLSTMError as failure:
        return _fail(str(failure), failure.exit_code)
    except typer.TyperException as failure:
        verb = f"{arguments[0]} " if arguments[0] in VERBS else ""
        return _fail(f"{_usage_message(failure)} (see: mdlstm {verb}--help)", 2)
    except BrokenPipeError:
        # The reader of stdout has gone. Point stdout nowhere, or Python complains again at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except (KeyboardInterrupt, typer.Abort):
        return _fail("interrupted", 130)
    except UnsupportedOperation:
        return _fail("stdout is closed, but the result is written there; redirect it with > or use -o", 1)
    except OSError as failure:
        where = f"{failure.filename}: " if failure.filename else ""
        return _fail(f"{where}{failure.strerror or failure}", 1)
    except MemoryError:
        return _fail("out of memory; use a smaller size, batch or hidden size", 1)


def _usage_message(failure: typer.TyperException) -> str:
    similar = getattr(failure, "possibilities", None)  # of an unknown option
    if similar:
        return f"no such option: {getattr(failure, 'option_name', '')}; did you mean '{similar[0]}'?"
    return failure.format_message()


def _fail(message: str, code: int) -> int:
    if verbosity.debug:
        sys.stderr.write(_traceback())
    error(message)
    return code


def _traceback() -> str:
    """The traceback of the current exception. Each message in it takes one line, whatever it holds."""
    parts = traceback.format_exception(*sys.exc_info())
    lines: list[str] = []
    for part in parts:
        is_message = not part.startswith(('  File "', "Traceback (most", "\n"))
        lines += [part.rstrip("\n")] if is_message else part.rstrip("\n").split("\n")
    return "".join(f"{printable(line)}\n" for line in lines)


def _peak_memory() -> str:
    try:
        import resource
    except ImportError:  # Windows
        return ""
    scale = 1 if sys.platform == "darwin" else 1024  # ru_maxrss counts bytes or KiB
    return f", peak memory {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * scale / 2**20:.0f} MiB"
