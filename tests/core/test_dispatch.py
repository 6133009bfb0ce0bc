"""Which backend runs, also without a working compiler, and what is imported on the way to a verb."""

from __future__ import annotations

import subprocess
import sys
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.checkout import modules
from helpers.without_packages import IMPORT_HOOK

from mdlstm_tk import MDLSTM, InputError, backends
from mdlstm_tk import sweep as sweep_module
from mdlstm_tk.backends import torch as torch_engine
from mdlstm_tk.backends.cpu import sweep as cpu_sweep


def test_which_backend_runs_and_why() -> None:
    x = torch.randn(2, 4, 5, 2)
    assert MDLSTM(2, 8).backend_for(x).name == MDLSTM(2, 8, backend="fused").backend_for(x).name == "fused"
    assert MDLSTM(2, 8).backend_for(x.to("meta")).name == "torch"
    assert MDLSTM(2, 8, backend="torch").backend_for(x) == ("torch", "as asked")
    cpu, xpu = torch.device("cpu"), torch.device("xpu")  # which not every installation has
    for backend in ("auto", "fused"):
        assert backends.engine(backend, cpu).__name__ == "mdlstm_tk.backends.cpu.sweep"  # type: ignore[attr-defined]
    assert backends.engine("auto", xpu) is torch_engine
    with pytest.raises(InputError):
        backends.engine("fused", xpu)


@pytest.mark.parametrize("how", ["plain", "recompute", "compiled"])
def test_a_compiler_that_failed_is_tried_again(how: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """But not by backward, which could not read what the torch backend keeps."""
    layer, x = MDLSTM(2, 4, recompute=how == "recompute"), torch.randn(1, 3, 4, 2)
    expected = torch.autograd.grad(layer(x).square().sum(), list(layer.parameters()))
    run: Any = torch.compile(layer, backend="aot_eager") if how == "compiled" else layer
    monkeypatch.setattr(backends, "_works", set())
    sweep_module._engine_of_graphs.cache_clear()
    with monkeypatch.context() as broken:
        broken.setattr(cpu_sweep, "try_compiler", lambda device: 1 / 0)
        with pytest.warns(RuntimeWarning, match="division by zero"):
            loss = run(x).square().sum()
        assert layer.backend_for(x).name == "torch"
    assert layer.backend_for(x).name == "fused"
    torch.testing.assert_close(torch.autograd.grad(loss, list(layer.parameters())), expected)
    sweep_module._engine_of_graphs.cache_clear()


BROKEN_NUMBA = {
    "switched off": ("import os; os.environ['NUMBA_DISABLE_JIT'] = '1'", "NUMBA_DISABLE_JIT"),
    "not installed": (IMPORT_HOOK.format(names=("numba", "llvmlite")), "No module named 'numba'"),
    "broken": ("import sys; sys.path.insert(0, 'broken')", "needs NumPy 1.0"),
}
WITHOUT_NUMBA = """
import warnings
import torch
from mdlstm_tk import MDLSTM, InputError
from mdlstm_tk.installation import check_installation
x = torch.ones(1, 3, 4, 2)
with warnings.catch_warnings(record=True) as caught:
    for _ in range(2):  # one warning for both
        MDLSTM(2, 4)(x).sum().backward()
print(*(warning.message for warning in caught), sep="\\n")
print(MDLSTM(2, 4).backend_for(x))
try:
    MDLSTM(2, 4, backend="fused")(x)
except InputError as error:
    print(error)
print([check.state for check in check_installation() if check.name == "kernels for the CPU"])
"""


@pytest.mark.parametrize("case", BROKEN_NUMBA)
def test_without_a_working_numba_the_torch_backend_runs(case: str, tmp_path: Path) -> None:
    setup, reason = BROKEN_NUMBA[case]
    package = tmp_path / "broken" / "numba"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text("raise SystemError('Numba needs NumPy 1.0 or less')")
    command = [sys.executable, "-c", f"{setup}\n{WITHOUT_NUMBA}"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, check=False)
    assert done.returncode == 0, done.stderr
    *warned, choice, refused, doctor = done.stdout.splitlines()
    assert len(warned) == 1 and all(reason in line for line in (*warned, choice, refused))
    assert "name='torch'" in choice
    assert doctor == ("['absent']" if case == "not installed" else "['broken']")


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
