"""The `mdlstm` command. One file a verb; nothing heavy is imported before a verb runs."""

from __future__ import annotations

import os
import sys

from mdlstm_tk.cli.interrupts import EXIT_CODE, interrupts

__all__ = ["main"]


def main(arguments: list[str] | None = None) -> None:
    """Run `mdlstm` and exit. Every error that a user can cause ends as one line on stderr.

    Args:
        arguments: those of the command line, without the name of the program. None: `sys.argv[1:]`.
    """
    interrupts.watch()
    # torch's threads would otherwise spin for milliseconds after each operation, on the cores that a sweep
    # is to share. OpenMP reads this when torch loads it. Most operations follow another one within 50 µs.
    if "OMP_WAIT_POLICY" not in os.environ:
        os.environ["OMP_WAIT_POLICY"] = "PASSIVE"
        os.environ.setdefault("GOMP_SPINCOUNT", "4000")  # of GNU's OpenMP: 50 µs, and then it is passive
    try:
        from mdlstm_tk.cli.app import run  # imported here, as Ctrl-C may come while it is

        code = run(sys.argv[1:] if arguments is None else arguments)
    except BaseException as error:
        interrupts.end()
        # An import that is interrupted may raise an error of its own.
        if not (interrupts.received or isinstance(error, KeyboardInterrupt)):
            raise
        sys.stderr.write("error: interrupted\n")
        code = EXIT_CODE
    interrupts.end()
    sys.exit(code)
