"""The frame of the command line: the verbs, and how errors become one line and an exit code.

Exit codes: 0 ok, 1 runtime, 2 usage, 3 parity, 4 device unavailable, 130 interrupted.
"""

from __future__ import annotations

import os
import signal
import sys
import traceback
import warnings
from importlib import import_module
from io import TextIOWrapper
from pathlib import Path
from types import FrameType
from typing import Annotated

import typer

from mdlstm_tk._version import __version__
from mdlstm_tk.cli import console
from mdlstm_tk.errors import MDLSTMError

PANELS = {
    "Train": ("train", "report", "compare", "sample"),
    "Export and run": ("export", "infer", "read", "verify"),
    "Look": ("info", "doctor"),
}
VERBS = {verb: panel for panel, verbs in PANELS.items() for verb in verbs}
ANYWHERE = ("-q", "--quiet", "-v", "--verbose", "--debug")  # before or after the verb


def root(
    import_: Annotated[
        list[Path],
        typer.Option("--import", metavar="FILE", help="Python file of yours to run first; repeatable."),
    ] = [],  # noqa: B006
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Print only errors and data.")] = False,
    verbose: Annotated[
        bool, typer.Option("--verbose", "-v", help="Print more about what is done.")
    ] = False,
    debug: Annotated[bool, typer.Option("--debug", help="Print the traceback of an error, too.")] = False,
    version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False,
) -> None:
    """Multi-dimensional LSTMs: train in PyTorch, export to ONNX, run anywhere."""
    console.level, console.debug = 0 if quiet else 1 + verbose, debug
    console.show_log()
    if version:
        sys.stdout.write(f"mdlstm-tk {__version__}\n")
        raise typer.Exit
    for path in import_:
        import_module("mdlstm_tk._util.user_code").import_file(path)


def typer_app(verbs: list[str]) -> typer.Typer:
    """The command `mdlstm` with some verbs: importing all of them takes longer than `infer` takes."""
    settings = {"help_option_names": ["-h", "--help"]}
    app = typer.Typer(
        pretty_exceptions_enable=False,
        callback=root,
        invoke_without_command=True,
        context_settings=settings,
    )
    for verb in verbs:
        function = getattr(import_module(f"mdlstm_tk.cli.{verb}"), verb)
        paragraphs = (" ".join(each.split()) for each in (function.__doc__ or "").split("\n\n"))
        app.command(verb, rich_help_panel=VERBS[verb], help="\n\n".join(paragraphs))(function)
    return app


def main(arguments: list[str] | None = None) -> None:
    """Run `mdlstm` and exit. Every error ends as one line on stderr.

    Args:
        arguments: those of the command line, without the name of the program. None: `sys.argv[1:]`.
    """
    words = sys.argv[1:] if arguments is None else arguments
    end = words.index("--") if "--" in words else len(words)
    console.words = words
    words = sorted(words[:end], key=lambda word: word not in ANYWHERE) + words[end:]
    # Idle threads of torch would otherwise spin beside a sweep. OpenMP reads this when torch loads it.
    if "OMP_WAIT_POLICY" not in os.environ:
        os.environ["OMP_WAIT_POLICY"] = "PASSIVE"
        os.environ.setdefault("GOMP_SPINCOUNT", "4000")  # of GNU's OpenMP: 50 µs, and then it is passive
    if isinstance(sys.stdout, TextIOWrapper) and not sys.stdout.isatty():
        sys.stdout.reconfigure(encoding="utf-8")  # what programs read is UTF-8 everywhere
    warnings.filterwarnings("ignore", module="PIL")  # on damaged metadata of an image that can be read
    warnings.showwarning = lambda message, *_: console.note(f"warning: {message}")
    interrupts: list[int] = []

    def interrupt(number: int, frame: FrameType | None) -> None:
        interrupts.append(number)  # other packages turn it into errors of their own
        while frame is not None:
            if frame.f_code.co_filename.startswith("<frozen importlib"):
                # An exception that passes through the import of some extension modules aborts the process.
                os.write(2, b"error: interrupted\n")
                os._exit(130)
            frame = frame.f_back
        raise KeyboardInterrupt

    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, interrupt)
    named = [word for word in words if word in VERBS][:1]
    is_whole = not named or "--install-completion" in words or "--show-completion" in words
    try:
        app = typer_app([*VERBS] if is_whole else named)
        code = app(words or ["--help"], prog_name="mdlstm", standalone_mode=False)
        sys.stdout.flush()
        if code == 130:  # Typer has caught the interrupt
            raise KeyboardInterrupt
        sys.exit(code if isinstance(code, int) else 0)
    except BrokenPipeError:  # the reader of stdout has gone; Python would complain again at exit
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
    except (Exception, KeyboardInterrupt) as error:
        code, text = (130, "interrupted") if interrupts else _described(error)
        if console.debug:
            console.note(traceback.format_exc(), least=0)
        console.note(f"error: {text}", least=0)
        sys.exit(code)


def _described(error: BaseException) -> tuple[int, str]:
    """The exit code and the line of an error."""
    if isinstance(error, MDLSTMError):
        return error.exit_code, str(error)
    if isinstance(error, typer.TyperException):
        return 2, error.format_message()
    if isinstance(error, KeyboardInterrupt | typer.Abort):
        return 130, "interrupted"
    if isinstance(error, OSError):
        return 1, f"{f'{error.filename}: ' if error.filename else ''}{error.strerror or error}"
    # torch raises RuntimeError: "CUDA out of memory. …", "…: can't allocate memory: …"
    is_memory = isinstance(error, MemoryError) or "memory" in str(error)
    advice = "; use a smaller size, batch or hidden size" if is_memory else ""
    return 1, f"{type(error).__name__}: {' '.join(str(error).split())[:300]}{advice}"
