"""Functions that run once a module has been imported, and the operator that is registered by one."""

from __future__ import annotations

import subprocess
import sys
from importlib import import_module, util
from pathlib import Path

import pytest

from mdlstm_tk.import_hooks import when_imported


def test_an_action_runs_once_after_the_import(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "hooked.py").write_text("value = 1\n")
    monkeypatch.syspath_prepend(tmp_path)
    calls: list[str] = []
    when_imported("hooked", lambda: calls.append(f"first {sys.modules['hooked'].value}"))
    when_imported("hooked", lambda: calls.append("second"))
    assert util.find_spec("hooked") is not None  # looking is not importing
    assert calls == []
    import_module("hooked")
    assert calls == ["first 1", "second"]
    when_imported("hooked", lambda: calls.append("third"))
    assert calls.pop() == "third"
    del sys.modules["hooked"]
    import_module("hooked")
    del sys.modules["hooked"]
    assert len(calls) == 2


def test_a_module_that_is_not_there_stays_missing() -> None:
    when_imported("no_such_module", lambda: pytest.fail("it was not imported"))
    with pytest.raises(ModuleNotFoundError):
        import_module("no_such_module")


ORDERS = {
    "torch first": "import torch, mdlstm_tk",
    "the runtime first": "import mdlstm_tk.runtime, torch",
    "by way of training": "import mdlstm_tk.training, torch",
}


@pytest.mark.parametrize("order", ORDERS)
def test_the_operator_is_registered_whatever_is_imported_first(order: str, tmp_path: Path) -> None:
    code = f"""
{ORDERS[order]}
import sys
assert torch.ops.mdlstm.wavefront.default and torch.ops.mdlstm.wavefront_backward.default
assert not {{"numba", "torch.utils.flop_counter", "onnx"}} & sys.modules.keys()
import torch.utils.flop_counter
assert torch.ops.mdlstm.wavefront in torch.utils.flop_counter.flop_registry
"""
    command = [sys.executable, "-W", "error::UserWarning", "-c", code]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, check=False)
    assert done.returncode == 0, done.stderr


def test_importing_the_package_imports_no_torch(tmp_path: Path) -> None:
    code = "import mdlstm_tk, mdlstm_tk.runtime, sys; assert 'torch' not in sys.modules"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path, check=False
    )
    assert done.returncode == 0, done.stderr


def test_a_torch_that_the_operator_does_not_fit_can_still_be_imported(tmp_path: Path) -> None:
    (tmp_path / "torch.py").write_text("Tensor = None\n")
    code = """
import warnings
import mdlstm_tk
with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    import torch
assert torch.Tensor is None
assert [str(w.message).startswith("mdlstm::wavefront is not registered") for w in caught] == [True]
"""
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path, check=False
    )
    assert done.returncode == 0, done.stderr
