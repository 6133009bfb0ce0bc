"""The choice of a backend: by device and dtype, without a working compiler, and in captured graphs."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.without_packages import IMPORT_HOOK

from mdlstm_tk import MDLSTM, Gate, InputError, MDLSTMError, register_cell
from mdlstm_tk.backends import dispatch
from mdlstm_tk.backends import run as run_module
from mdlstm_tk.backends.cpu import cell_code
from mdlstm_tk.backends.torch import sweep as torch_sweep


def test_which_backend_runs_and_why() -> None:
    x = torch.randn(2, 4, 5, 2)
    for dtype in (torch.float32, torch.float64, torch.float16, torch.bfloat16):
        assert MDLSTM(2, 8).backend_for(x.to(dtype)).name == "fused"
    assert MDLSTM(2, 8).backend_for(x.to("meta")).name == "torch"
    assert MDLSTM(2, 8, backend="reference").backend_for(x) == ("reference", "as asked")
    for backend in ("auto", "fused", "torch"):
        with pytest.raises(InputError, match="complex64"):
            MDLSTM(2, 8, backend=backend).backend_for(x.to(torch.complex64))
    cpu, xpu = torch.device("cpu"), torch.device("xpu")  # which not every installation has
    for backend in ("auto", "fused"):
        assert dispatch.engine(backend, cpu, torch.float32).__name__ == "mdlstm_tk.backends.cpu.sweep"
    assert dispatch.engine("auto", xpu, torch.float32) is torch_sweep
    with pytest.raises(InputError, match="xpu"):
        dispatch.engine("fused", xpu, torch.float32)


BROKEN_NUMBA = {
    "switched off": ("import os; os.environ['NUMBA_DISABLE_JIT'] = '1'", "NUMBA_DISABLE_JIT"),
    "not installed": (IMPORT_HOOK.format(names=("numba", "llvmlite")), "No module named 'numba'"),
    "broken": ("import sys; sys.path.insert(0, 'broken')", "needs NumPy 1.0"),
}


WITHOUT_NUMBA = """
import warnings
import torch
from mdlstm_tk import MDLSTM, Gate, InputError, MDLSTMError, register_cell
from mdlstm_tk.installation import check_installation
x = torch.ones(1, 3, 4, 2)
with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
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
    code = f"{setup}\n{WITHOUT_NUMBA}"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path, check=False
    )
    assert done.returncode == 0, done.stderr
    *warned, choice, refused, doctor = done.stdout.splitlines()
    assert len(warned) == 1 and reason in warned[0]
    assert "name='torch'" in choice and reason in choice
    assert "backend='fused'" in refused and reason in refused
    assert doctor == ("['absent']" if case == "not installed" else "['broken']")


@pytest.mark.parametrize("backend", ["auto", "fused"])
def test_captured_graphs_hold_what_was_asked_for_and_no_choice(
    backend: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    layer, x = MDLSTM(2, 4, backend=backend), torch.randn(2, 3, 4, 2)
    graphs = [torch.export.export(layer, (x,)).module(), torch.jit.trace(layer, x)]
    asked: list[tuple[Any, ...]] = []

    def engine(*arguments: Any) -> Any:
        asked.append(arguments)
        return torch_sweep  # as if x were on another device

    expected = layer(x)
    monkeypatch.setattr(run_module, "engine", engine)
    for graph in graphs:
        torch.testing.assert_close(graph(x), expected)
        assert asked.pop() == (backend, x.device, x.dtype)


@pytest.mark.parametrize("captured", [False, True], ids=["eager", "captured"])
@pytest.mark.parametrize("fails", ["forward", "backward"])
def test_a_cell_whose_kernel_does_not_compile_raises_and_others_run(
    fails: str, captured: bool, monkeypatch: pytest.MonkeyPatch, fresh_registries: None
) -> None:
    gates = [Gate("f", start=1.0), Gate("z", "tanh")]

    @register_cell("broken", gates=gates)
    def equations(gates: Any, states: Any) -> Any:
        f, z = gates
        c = f * states["c"][0] + z.sqrt() * 0.3
        return c, {"c": c}

    def broken(kernel: Any, *_: Any) -> Any:
        slots = {store.slot for store in kernel.stores}
        if ("da" in slots) == (fails == "backward") and "sqrt" in kernel.text:
            raise SystemError("LLVM has\nchanged")
        return build(kernel, *_)

    build = cell_code.block_function
    monkeypatch.setattr(cell_code, "block_function", broken)
    x = torch.randn(2, 3, 4, 2)
    layer, other = MDLSTM(2, 4, cell="broken"), MDLSTM(2, 4)
    run = torch.export.export(layer, (x,)).module() if captured else layer
    with pytest.raises(MDLSTMError, match=r"cell 'broken' .*LLVM has changed.*backend='torch'") as refused:
        run(x).sum().backward()
    assert "\n" not in str(refused.value)
    other(x).sum().backward()
    assert other.backend_for(x).name == layer.backend_for(x).name == "fused"
    layer.backend = "torch"
    layer(x).sum().backward()
