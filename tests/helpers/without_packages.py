"""Run Python in a process that looks as if packages were not installed."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

TRAINING = ("torch", "onnx", "onnxscript", "numba", "safetensors", "matplotlib", "tomli_w")
"""The packages that only training and export need."""

IMPORT_HOOK = """
import sys
class NotInstalled:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in {names!r}:
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)
sys.meta_path.insert(0, NotInstalled())
"""


def python_without(
    names: tuple[str, ...], code: str, *arguments: object, cwd: Path
) -> subprocess.CompletedProcess[str]:
    """Run `code` in a process in which importing any of the packages `names` fails."""
    command = [sys.executable, "-c", IMPORT_HOOK.format(names=names) + code, *map(str, arguments)]
    return subprocess.run(
        command, capture_output=True, text=True, cwd=cwd, check=False, env={**os.environ, "COLUMNS": "200"}
    )
