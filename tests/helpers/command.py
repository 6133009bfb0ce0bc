"""Call `mdlstm` in this process, or in one of its own, where torch takes seconds to import."""

from __future__ import annotations

import io
import os
import signal
import subprocess
import sys
import warnings
from contextlib import chdir, redirect_stderr, redirect_stdout
from pathlib import Path
from tempfile import TemporaryFile
from typing import Any, NamedTuple
from unittest.mock import patch

import pytest

from mdlstm_tk.cli.app import main

ENVIRONMENT = {"COLUMNS": "200", "OMP_NUM_THREADS": "1"}


class Result(NamedTuple):
    """Exit code and output of a call of `mdlstm`."""

    code: int
    out: str
    err: str


def mdlstm(
    *arguments: object, cwd: Path | None = None, stdin: bytes = b"", env: dict[str, str] | None = None
) -> Result:
    """Call `mdlstm` in this process; an exception that it does not turn into an error fails the test."""
    out, err = (io.TextIOWrapper(io.BytesIO(), "utf-8", write_through=True) for _ in range(2))
    on_interrupt = signal.getsignal(signal.SIGINT)  # `main` lets it be ignored, as the process ends
    with TemporaryFile() as file, io.TextIOWrapper(file, "utf-8") as stream:
        file.write(stdin)  # in a file, as isolated models read their input by its descriptor
        file.seek(0)
        with (
            chdir(cwd or "."),
            patch.dict(os.environ, ENVIRONMENT | (env or {})),
            patch.object(sys, "stdin", stream),
            redirect_stdout(out),
            redirect_stderr(err),
            warnings.catch_warnings(),
            pytest.raises(SystemExit) as ended,
        ):
            main(list(map(str, arguments)))
    signal.signal(signal.SIGINT, on_interrupt)
    assert isinstance(ended.value.code, int)
    return Result(ended.value.code, *map(_text, (out, err)))


def _text(stream: io.TextIOWrapper) -> str:
    content = stream.buffer
    assert isinstance(content, io.BytesIO)
    return content.getvalue().decode(errors="replace")  # arrays go there, too


def succeed(*arguments: object, **options: Any) -> Result:
    """Call `mdlstm` in this process, which must end with the exit code 0."""
    done = mdlstm(*arguments, **options)
    assert done.code == 0, done.err
    return done


def mdlstm_process(*arguments: object, cwd: Path | None = None) -> Result:
    """Call `mdlstm` in a process of its own."""
    command = [sys.executable, "-m", "mdlstm_tk", *map(str, arguments)]
    environment = {**os.environ, **ENVIRONMENT}
    done = subprocess.run(command, cwd=cwd, capture_output=True, text=True, env=environment, check=False)
    return Result(done.returncode, done.stdout, done.stderr)
