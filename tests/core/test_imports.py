"""What is imported on the way to a verb. `make lint` holds who may import whom."""

from __future__ import annotations

import subprocess
import sys
from importlib import import_module

import pytest
from helpers.checkout import modules

HEAVY = ("torch", "onnx", "onnxscript", "numba")
# Verbs import torch and onnx when they run, so that `mdlstm --help` is fast and works without them.
WITHOUT: dict[str, tuple[list[str], tuple[str, ...]]] = {
    "the runtime and the command line": (
        [
            *(name for name in modules() if name.startswith(("mdlstm_tk.io", "mdlstm_tk.cli"))),
            "mdlstm_tk.runtime.session",
        ],
        HEAVY,
    ),
    "the layer": (["mdlstm_tk.layer"], ("numba", "torch.utils.flop_counter", "onnx")),
}
PACKAGES = [name for name, path in modules().items() if path.name == "__init__.py"]


@pytest.mark.parametrize("case", WITHOUT)
def test_what_takes_long_is_not_imported(case: str) -> None:
    names, heavy = WITHOUT[case]
    code = f"import sys, {', '.join(names)}; print(*sys.modules.keys() & {set(heavy)})"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.stdout, done.returncode) == ("\n", 0), done.stderr


@pytest.mark.parametrize("package", PACKAGES)
def test_public_names_exist(package: str) -> None:
    """Also those that are imported when somebody asks for them."""
    module = import_module(package)
    names = getattr(module, "__all__", [])
    assert len(names) == len(set(names))
    assert [name for name in names if not hasattr(module, name)] == []
    assert package != "mdlstm_tk" or dir(module) == sorted(names)
