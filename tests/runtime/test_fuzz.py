"""A few cases of the fuzzer; `python tests/runtime/fuzz.py` runs thousands."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["models", "arrays"])
@pytest.mark.skipif(sys.platform == "win32", reason="workers have limits of POSIX")
def test_mutated_files_end_in_a_result_or_an_error(kind: str) -> None:
    command = [sys.executable, Path(__file__).with_name("fuzz.py"), kind, "--count", "300"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
