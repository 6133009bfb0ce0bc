"""Every backend against `reference` in float64: outputs and every gradient.

Fresh memory is poisoned with NaN throughout, so that a kernel that reads what nobody wrote shows.
"""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.parity import Case
from helpers.without_packages import IMPORT_HOOK
from torch.autograd import gradcheck, gradgradcheck

from mdlstm_tk import MDLSTM, InputError
from mdlstm_tk.cells import BUILT_IN_CELLS
from mdlstm_tk.cells.ir import Kernel, Store, Value

pytestmark = pytest.mark.usefixtures("poisoned_memory", "one_thread")
GRIDS = ((5,), (5, 8), (2, 3, 4))


def _matrix() -> list[Case]:
    common: dict[str, Any] = {"directions": "all", "sizes": True}
    cells = [
        *(Case(cell, grid, **common) for cell in BUILT_IN_CELLS for grid in GRIDS),
        *(Case(cell, dtype="float32", **common) for cell in BUILT_IN_CELLS),
        *(Case(cell, layer_norm=True, dtype="float32", **common) for cell in BUILT_IN_CELLS),
        *(Case(cell, recompute=True, **common) for cell in BUILT_IN_CELLS),
    ]
    peepholes = [Case(grid=grid, directions="all", peephole=True) for grid in GRIDS]
    both = [Case(layer_norm=True, peephole=True, recompute=recompute) for recompute in (False, True)]
    plain = Case(units=16)
    shapes = [
        *(replace(plain, grid=grid) for grid in [(1, 1), (1, 7), (7, 1), (8, 5), (1, 1, 1), (3, 1, 4)]),
        *(replace(plain, batch=batch) for batch in (1, 0, 40)),  # 40: a wavefront longer than a block
        *(replace(plain, units=units) for units in (1, 4, 40)),
        replace(plain, directions=((-1, 1),)),
        replace(plain, directions=((-1, -1), (1, -1)), sizes=True),
        replace(plain, bias=False),
        replace(plain, batch=40, bias=False, recompute=True),
        Case(grid=(2, 1, 3, 2), directions=((1, -1, 1, -1),)),
        Case("slstm", (2, 1, 3, 2), directions=((1, -1, 1, -1),), layer_norm=True),
    ]
    return [*cells, *peepholes, *both, *shapes]


@pytest.mark.parametrize("backend", ["torch", "fused"])
@pytest.mark.parametrize("case", _matrix(), ids=str)
def test_agrees_with_reference(case: Case, backend: str) -> None:
    case.check(backend)


@pytest.mark.parametrize("backend", ["torch", "fused"])
@pytest.mark.parametrize(("dtype", "layer_norm"), [("float16", True), ("bfloat16", False)])
@pytest.mark.parametrize("cell", BUILT_IN_CELLS)
def test_half_precision_agrees_with_reference(
    cell: str, dtype: str, layer_norm: bool, backend: str
) -> None:
    Case(cell, directions="all", sizes=True, layer_norm=layer_norm, dtype=dtype).check(backend)


def test_half_precision_with_gates_computed_again() -> None:
    Case("stable", recompute=True, dtype="bfloat16").check("fused")


@pytest.mark.parametrize(
    "case",
    [
        *(Case(cell, (2, 3), batch=2, units=2, directions="all", sizes=True) for cell in BUILT_IN_CELLS),
        Case(grid=(2, 3), batch=2, units=3, layer_norm=True, peephole=True),
    ],
    ids=str,
)
def test_gradcheck(case: Case) -> None:
    layer = case.layer("fused", torch.float64)
    x = torch.randn(case.batch, *case.grid, 2, dtype=torch.float64, requires_grad=True)
    sizes = torch.tensor([[2, 3], [2, 1]]) if case.sizes else None
    assert gradcheck(lambda x, *_: layer(x, sizes), (x, *layer.parameters()))


@pytest.mark.parametrize(("cell", "grid"), [("graves", (2, 2)), ("slstm", (2,))], ids=str)
def test_second_derivatives(cell: str, grid: tuple[int, ...]) -> None:
    layer = Case(cell, grid, units=2).layer("fused", torch.float64)
    x = torch.randn(2, *grid, 2, dtype=torch.float64, requires_grad=True)
    assert gradgradcheck(lambda x, *_: layer(x), (x, *layer.parameters()))
    x = x.detach()  # and with an input that wants no gradient
    assert gradgradcheck(lambda *_: layer(x), tuple(layer.parameters()))


def test_backward_may_run_twice() -> None:
    layer = Case().layer("fused", torch.float64)
    y = layer(torch.randn(3, 5, 8, 2, dtype=torch.float64)).sum()
    first = torch.autograd.grad(y, tuple(layer.parameters()), retain_graph=True)
    second = torch.autograd.grad(y, tuple(layer.parameters()))
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


@pytest.mark.parametrize("cell", ["stable", "leaky"])
@pytest.mark.parametrize("scale", [1, 30])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
def test_big_grids_stay_finite(cell: str, scale: int, dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    layer = MDLSTM(2, 16, cell=cell)
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.mul_(scale)
    layer, x = layer.to(dtype), torch.randn(1, 256, 256, 2, dtype=dtype, requires_grad=True)
    if scale > 1:  # with such weights gradients grow from cell to cell, by the equations
        with torch.no_grad():
            assert layer(x).abs().max() <= 1 + 1e-6
        return
    y = layer(x)
    (y * torch.randn_like(y)).sum().backward()
    assert y.abs().max() <= 1 + 1e-6
    assert all(p.grad is not None and p.grad.isfinite().all() for p in (x, *layer.parameters()))


@pytest.mark.parametrize("backend", ["auto", "torch"])
def test_pre_activations_beyond_float16(backend: str) -> None:
    """Rounded to float16 they would be infinite, and the layer norm would turn them into NaN."""
    case = Case("stable", layer_norm=True, dtype="float16")
    layer = case.layer(backend, torch.float16)
    x = torch.full((1, 5, 8, 2), 6e4, dtype=torch.float16)
    y = layer(x)
    y.sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in layer.parameters())
    layer.backend = "torch"
    torch.testing.assert_close(y.double(), layer.double()(x.double()), rtol=0, atol=2e-3)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_nan_stays_nan(dtype: torch.dtype) -> None:
    layer = MDLSTM(1, 1, ndim=1, bias=False, backend="fused").to(dtype)
    payloads = torch.tensor([0x7FF80000000007A2, 0x7FF8000000000001, -1]).view(torch.float64).to(dtype)
    assert layer(payloads.view(-1, 1, 1)).isnan().all()


def test_a_closed_gate_passes_nothing_on() -> None:
    """A slope that is not 0 to rounding shows once it is multiplied by a huge x."""
    case = Case(units=4)
    x = torch.randn(1, 4, 4, 2, dtype=torch.float64)
    x[0, 1, 1, 0] = 1e20
    found, expected = (
        torch.autograd.grad(layer(x).sum(), layer.weight_ih_l0)[0]
        for layer in (case.layer(backend, torch.float64) for backend in ("fused", "reference"))
    )
    torch.testing.assert_close(found, expected)


def test_which_backend_runs_and_why() -> None:
    x = torch.randn(2, 4, 5, 2)
    assert MDLSTM(2, 8).backend_for(x).name == "fused"
    assert MDLSTM(2, 8).backend_for(x.double()).name == "fused"
    assert MDLSTM(2, 8).backend_for(x.to("meta")).name == "torch"
    assert MDLSTM(2, 8, backend="reference").backend_for(x) == ("reference", "as asked")
    assert MDLSTM(2, 8).half().backend_for(x.half()).name == "fused"
    for backend in ("auto", "fused", "torch"):
        with pytest.raises(InputError, match="complex64"):
            MDLSTM(2, 8, backend=backend).backend_for(x.to(torch.complex64))


BROKEN_NUMBA = {
    "switched off": ("import os; os.environ['NUMBA_DISABLE_JIT'] = '1'", "NUMBA_DISABLE_JIT"),
    "not installed": (IMPORT_HOOK.format(names=("numba", "llvmlite")), "No module named 'numba'"),
    "broken": ("import sys; sys.path.insert(0, 'broken')", "needs NumPy 1.0"),
}
WITHOUT_NUMBA = """
import warnings
import torch
from mdlstm_tk import MDLSTM, InputError
from mdlstm_tk._util.diagnostics import check_installation
x = torch.ones(1, 3, 4, 2)
with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    y, other = (MDLSTM(2, 4)(x.to(dtype)) for dtype in (torch.float32, torch.float32))
    y.sum().backward()
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


def test_a_mean_starts_a_new_loop() -> None:
    a = Value.load("a", 0)
    centered = a - a.mean()
    square = centered * centered
    kernel = Kernel([Store("b", 0, square * 2 + square.mean())])
    assert kernel.levels == 3
    doubled = [value for value in kernel.values if value.op == "multiply" and value.args[0] is square]
    assert kernel.spilled == doubled  # loads are loaded again, means are one number
