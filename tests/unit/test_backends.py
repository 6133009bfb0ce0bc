"""Every backend against `reference` in float64: outputs and every gradient.

Fresh memory is poisoned with NaN throughout, so that a kernel that reads what nobody wrote shows.
To compile a kernel takes seconds, and there is one for each cell, number of axes, dtype and option. So the
cases combine any two of these, and share kernels with each other and with those of other test files.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numba.core.caching
import pytest
import torch
from helpers.parity import Case
from torch.autograd import gradcheck, gradgradcheck

from mdlstm_tk import MDLSTM, InputError
from mdlstm_tk.backends.cpu.jit import njit_cached
from mdlstm_tk.cells import BUILT_IN_CELLS
from mdlstm_tk.cells.ir import Kernel, Store, Value

pytestmark = pytest.mark.usefixtures("poisoned_memory", "one_thread")
SINGLES = ("float32", "float64")
GRIDS = ((5,), (5, 8), (2, 3, 4))


def _matrix() -> list[Case]:
    common: dict[str, Any] = {"directions": "all", "sizes": True}
    cells = [
        *(Case(cell, grid, **common) for cell in BUILT_IN_CELLS for grid in GRIDS),
        *(Case(cell, dtype="float32", **common) for cell in BUILT_IN_CELLS),
        *(Case(grid=grid, dtype="float32", **common) for grid in (GRIDS[0], GRIDS[2])),
    ]
    norms = [
        Case(layer_norm=True, **common),
        # in float32, whose kernels half precision uses, too
        *(Case(cell, layer_norm=True, dtype="float32", **common) for cell in BUILT_IN_CELLS),
    ]
    peepholes = [Case(grid=grid, directions="all", peephole=True) for grid in GRIDS]
    both = Case(layer_norm=True, peephole=True)
    plain = Case(units=16)
    shapes = [
        *(replace(plain, grid=grid) for grid in [(1, 1), (1, 7), (7, 1), (8, 5)]),
        *(replace(plain, grid=grid) for grid in [(1, 1, 1), (3, 1, 4)]),
        replace(plain, batch=1),
        replace(plain, batch=0),
        replace(plain, batch=40),  # a wavefront longer than a block
        *(replace(plain, units=units) for units in (1, 4, 40)),
        replace(plain, directions=((-1, 1),)),
        replace(plain, directions=((-1, -1), (1, -1)), sizes=True),
        replace(plain, bias=False),
        Case(grid=(2, 1, 3, 2), directions=((1, -1, 1, -1),)),
    ]
    again = [
        Case(recompute=True, **common),
        *(Case(cell, recompute=True, dtype="float32", **common) for cell in BUILT_IN_CELLS[1:]),
        Case(grid=(2, 3, 4), layer_norm=True, peephole=True, recompute=True),
        replace(plain, batch=40, bias=False, recompute=True),
    ]
    return [*cells, *norms, *peepholes, both, *shapes, *again]


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


def test_second_derivatives() -> None:
    layer = Case(grid=(2, 2), units=2).layer("fused", torch.float64)
    x = torch.randn(2, 2, 2, 2, dtype=torch.float64, requires_grad=True)
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


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=SINGLES)
def test_activations_over_their_whole_range(dtype: torch.dtype) -> None:
    """One cell whose pre-activations are all x shows the kernel's sigmoid and tanh."""
    layer = MDLSTM(1, 1, ndim=1, bias=False, backend="fused").to(dtype)
    with torch.no_grad():
        layer.weight_ih_l0.fill_(1)
    x = torch.cat([torch.linspace(-50, 50, 4001), torch.tensor([-1e30, 1e30, -1e-6, 0.0])]).to(dtype)
    y = layer(x.view(-1, 1, 1)).flatten()
    expected = x.sigmoid() * (x.sigmoid() * x.tanh()).tanh()
    torch.testing.assert_close(y, expected, rtol=0, atol=5e-7 if dtype == torch.float32 else 2e-15)
    assert layer(torch.full((1, 1, 1), float("nan"), dtype=dtype)).isnan().all()
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


def test_without_a_place_for_compiled_code(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("NUMBA_CACHE_DIR", "relative")
    monkeypatch.chdir(tmp_path)

    def double(x: float) -> float:
        return 2 * x

    assert njit_cached(double, "float64(float64)")(1.5) == 3.0
    assert not list(tmp_path.iterdir())


def test_broken_compiled_code_on_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NUMBA_CACHE_DIR", str(tmp_path))

    def make() -> Any:
        def triple(x: float) -> float:
            return 3 * x

        return njit_cached(triple, "float64(float64)")

    make()
    files = list(tmp_path.rglob("*.nbc"))
    assert len(files) == 1
    files[0].write_bytes(files[0].read_bytes()[:10])
    assert make()(1.5) == 4.5
    for file in tmp_path.rglob("*.nb*"):
        file.unlink()
    monkeypatch.setattr(numba.core.caching.IndexDataCacheFile, "save", _no_space)
    assert make()(1.5) == 4.5


def _no_space(*_: object) -> None:
    raise OSError(28, "No space left on device")


@pytest.mark.parametrize(("backend", "recompute"), [("torch", False), ("fused", True)])
def test_a_graph_captured_without_gradients_can_be_trained(backend: str, recompute: bool) -> None:
    layer, x = MDLSTM(2, 4, backend=backend, recompute=recompute), torch.randn(1, 3, 4, 2)
    with torch.no_grad():
        captured = torch.export.export(layer, (x,)).module()
    captured(x).square().sum().backward()
    layer(x).square().sum().backward()
    for one, other in zip(captured.parameters(), layer.parameters(), strict=True):
        torch.testing.assert_close(one.grad, other.grad)


def test_a_mean_starts_a_new_loop() -> None:
    a = Value.load("a", 0)
    centered = a - a.mean(dim=-1, keepdim=True)
    square = centered.square()
    kernel = Kernel([Store("b", 0, square * 2 + square.mean(dim=-1, keepdim=True))])
    assert kernel.levels == 3
    doubled = [value for value in kernel.values if value.op == "multiply" and value.args[0] is square]
    assert kernel.spilled == doubled  # loads are loaded again, means are one number
