"""The fused sweep for CUDA against `reference` in float64: outputs and every gradient.

With a GPU the kernels are compiled and run there. Without one they run in Triton's interpreter on the CPU
(`conftest.py` sees to that), with the engine put in place of the CPU's; small shapes, since it is slow.
"""

from __future__ import annotations

import inspect
import re
import subprocess
import sys
from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import replace
from itertools import cycle
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.odd_inputs import OddCase
from helpers.parity import Case
from helpers.states import StateCase

from mdlstm_tk import MDLSTM
from mdlstm_tk import operator as wavefront_operator
from mdlstm_tk.backends import dispatch, tables
from mdlstm_tk.backends.specialize import KernelError
from mdlstm_tk.cells import BUILT_IN_CELLS, get_cell

pytest.importorskip("triton", reason="there is no Triton for this system")
import triton
import triton.language as tl
from triton.runtime.errors import OutOfResources

from mdlstm_tk.backends.cuda import codegen, kernels, launch

EXAMPLE = Path(__file__).parents[2] / "examples" / "own_cell.py"
OWN_CELLS = ("coupled", "input-gated")  # the second one has no recurrent product
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


@pytest.fixture(autouse=True)
def _engine(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Every sweep that is not `reference`'s goes to the engine for CUDA, and fresh memory is NaN."""
    monkeypatch.setattr(wavefront_operator, "engine", lambda *_: launch)
    for name in OWN_CELLS:
        get_cell(f"{EXAMPLE}:{name}")
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(False)


def _matrix() -> list[Case]:
    grids = {1: (3,), 2: (2, 3), 3: (2, 1, 2)}
    plain = Case(grid=(3, 2), batch=2, units=3)
    cells = [
        replace(plain, cell=cell, grid=grid, directions="all", sizes=True)
        for cell in BUILT_IN_CELLS
        for grid in grids.values()
    ]
    dtypes = [
        replace(plain, cell=cell, dtype=dtype)
        for cell, dtype in zip(BUILT_IN_CELLS, cycle(("float16", "bfloat16")), strict=False)
    ]
    norms = [replace(plain, cell=cell, layer_norm=True, dtype="float32") for cell in BUILT_IN_CELLS]
    peepholes = [replace(plain, grid=grid, peephole=True, sizes=True) for grid in grids.values()]
    both = replace(plain, layer_norm=True, peephole=True)
    own = [
        replace(plain, cell=cell, grid=(2, 3), directions="all", sizes=True, **options)
        for cell in OWN_CELLS
        for options in ({}, {"layer_norm": True}, {"recompute": True})
    ]
    shapes = [
        *(replace(plain, grid=grid) for grid in [(1, 1), (1, 7), (7, 1), (5, 3), (3, 5), (1, 1, 1)]),
        replace(plain, batch=1),
        replace(plain, batch=0),
        *(replace(plain, units=units) for units in (1, 4, 21)),
        replace(plain, directions=((-1, 1),)),
        replace(plain, directions=((-1, -1), (1, -1)), sizes=True),
        replace(plain, bias=False),
        replace(plain, cell="stable", grid=(2, 1, 1, 2), directions=((1, -1, 1, -1),)),
    ]
    again = [
        *(replace(plain, cell=cell, recompute=True, dtype="float32") for cell in BUILT_IN_CELLS),
        *(replace(both, recompute=recompute, dtype="float16") for recompute in (False, True)),
    ]
    return [*cells, *dtypes, *norms, *peepholes, both, *own, *shapes, *again]


@pytest.mark.parametrize("case", _matrix(), ids=str)
def test_agrees_with_reference(case: Case) -> None:
    case.check("auto", DEVICE)


@pytest.mark.parametrize("seed", range(8))
def test_odd_inputs_agree_with_reference(seed: int) -> None:
    OddCase(seed).check("auto", DEVICE)


STATES = [
    *(StateCase(grid, sizes=True, batch=2) for grid in [(3,), (2, 3), (2, 1, 2)]),
    StateCase((2, 3), batch=2),
    StateCase((2, 1, 1, 2), "stable", directions=[(1, -1, 1, -1), (1, 1, 1, 1)]),
    *(StateCase((1, 3), batch=batch) for batch in (0, 1)),
    *(StateCase((2, 3), "leaky", sizes=True, dtype=dtype) for dtype in ("float32", "float16", "bfloat16")),
    StateCase((3, 2), options=("layer_norm", "peephole")),
    StateCase((3, 2), sizes=True, options=("recompute",)),
    StateCase((2, 2), OWN_CELLS[1], sizes=True),
]


@pytest.mark.parametrize("case", STATES, ids=str)
def test_states_agree_with_reference(case: StateCase) -> None:
    case.check("auto", DEVICE)


def test_padding_is_masked_while_sizes_cannot_be_read(monkeypatch: pytest.MonkeyPatch) -> None:
    """As while a CUDA graph is captured."""
    monkeypatch.setattr(tables, "_is_readable", lambda _: False)
    Case(grid=(2, 3), batch=3, units=3, directions="all", sizes=True).check("auto", DEVICE)
    StateCase((2, 3), sizes=True, batch=2).check("auto", DEVICE)


def test_rows_of_many_samples_on_a_large_grid() -> None:
    """The place of the last sample is beyond int32."""
    batch, positions, rows = 1 << 16, 1 << 16, 1 << 16

    @triton.jit
    def places(starts, order, out, batch, positions, ROWS: tl.constexpr):  # type: ignore[no-untyped-def]  # noqa: N803
        _, _, _, _, place, _ = kernels._rows(
            starts, order, 0, 0, batch.to(tl.int64), positions.to(tl.int64), ROWS
        )
        tl.store(out + tl.arange(0, ROWS)[:, None], place)

    starts = torch.tensor([0, 0, 1, 1], device=DEVICE)
    order = torch.zeros(1, dtype=torch.int32, device=DEVICE)
    out = torch.zeros(rows, dtype=torch.int64, device=DEVICE)
    places[(1,)](starts, order, out, batch, positions, ROWS=rows)
    assert torch.equal(out.cpu(), torch.arange(rows) * positions)


@pytest.mark.parametrize("layer_norm", [False, True], ids=["plain", "norm"])
def test_many_programs_a_wavefront(layer_norm: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Programs of 2 rows, and of 4 units where no layer norm needs all of them."""
    monkeypatch.setattr(launch, "UNITS", 4)
    monkeypatch.setattr(launch, "ELEMENTS", 32 if layer_norm else 8)
    case = Case(grid=(2, 3), units=9, directions=((1, -1), (-1, 1)), layer_norm=layer_norm, peephole=True)
    case.check("auto", DEVICE)


def test_inference_equals_training() -> None:
    """Without a backward to come, c goes where the pre-activations were."""
    case = Case(grid=(3, 4), batch=2, units=3, directions="all")
    layer = case.layer("auto", torch.float64).to(DEVICE)
    x = torch.randn(2, 3, 4, 2, dtype=torch.float64, device=DEVICE)
    with torch.no_grad():
        y = layer(x)
    assert torch.equal(y, layer(x))


def test_two_runs_are_equal_to_the_bit() -> None:
    case = Case(grid=(2, 3), batch=2, units=3, layer_norm=True, peephole=True, dtype="float32")
    one, other = (case.run("auto", torch.float32, DEVICE) for _ in range(2))
    assert all(torch.equal(one[name], other[name]) for name in one)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["float32", "float64"])
def test_activations_over_their_whole_range(dtype: torch.dtype) -> None:
    """One cell whose pre-activations are all x shows the kernel's sigmoid and tanh, also close to 0."""
    layer = MDLSTM(1, 1, ndim=1, bias=False).to(DEVICE, dtype)
    with torch.no_grad():
        layer.weight_ih_l0.fill_(1)
        wide = torch.cat([torch.linspace(-50, 50, 801), torch.tensor([-1e30, 1e30, -1e-6, 1e-20, 0.0])])
        x = wide.to(DEVICE, dtype)
        y = layer(x.view(-1, 1, 1)).flatten()
        x = x.double()
        expected = x.sigmoid() * (x.sigmoid() * x.tanh()).tanh()
        error = 1e-6 if dtype == torch.float32 else 1e-14
        torch.testing.assert_close(y.double(), expected, rtol=error, atol=error * 1e-20)
        assert layer(torch.full((1, 1, 1), float("nan"), dtype=dtype, device=DEVICE)).isnan().all()


@pytest.mark.parametrize("cell", ["stable", "leaky"])
@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_large_input_stays_finite(cell: str, dtype: str) -> None:
    """W x is beyond float16 here, and a layer norm of infinities would be NaN."""
    case = Case(cell, grid=(3, 2), batch=1, units=3, layer_norm=True, dtype=dtype)
    layer = case.layer("auto", torch.float32).to(getattr(torch, dtype)).to(DEVICE)
    x = torch.full((1, 3, 2, 2), 6e4, dtype=layer.bias_l0.dtype, device=DEVICE)
    y = layer(x)
    y.sum().backward()
    assert y.isfinite().all() and y.abs().max() <= 1
    assert all(p.grad is not None and p.grad.isfinite().all() for p in layer.parameters())


def test_a_kernels_source_can_be_read() -> None:
    kernel = codegen.get_kernel("forward", "graves", 2, False, False)
    text = inspect.getsource(kernel.fn.__globals__["_cell"].fn)
    assert text.startswith(
        "def forward_graves_2d(a, c_prev, peephole, norm_weight, norm_bias, unit, UNITS):\n"
    )
    assert text.count("tl.sigmoid(") == 4  # i, f_1, f_2, o
    assert text.count("tanh(") == 2  # g and c
    assert kernel.fn.__code__ is kernels.forward.__code__


def test_kernels_compile_for_gpus(tmp_path: Path) -> None:
    """The interpreter takes what the compiler does not. This needs no GPU, but a process of its own.

    The assembly has no atomics. Sizes are arguments in int32, and are made int64 before anything else, so
    that no offset is computed in int32.
    """
    script = Path(__file__).with_name("compile_triton.py")
    done = subprocess.run(
        [sys.executable, str(script), str(tmp_path)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assembly = [path.read_text() for path in tmp_path.glob("*.ptx")]
    assert len(assembly) == 10
    assert not any(re.search(r"\b(atom|red)\.", text) for text in assembly)
    for path in tmp_path.glob("*.ttir"):
        body = [line for line in path.read_text().splitlines() if "tt.func" not in line]
        uses = [line for line in body if re.search(r"%(t|batch|positions|lines|blocks)\b", line)]
        assert uses and all(re.search(r"= arith.extsi %\w+ : i32 to i64", line) for line in uses), uses


def test_which_backend_runs_on_a_gpu_and_why(monkeypatch: pytest.MonkeyPatch) -> None:
    cuda = torch.device("cuda")
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: (9, 0))
    monkeypatch.setattr(dispatch, "_triton_failure", lambda _: "")
    monkeypatch.setattr(dispatch, "_failures", {})
    dispatch.choose.cache_clear()
    for dtype in (torch.float32, torch.float64, torch.float16, torch.bfloat16):
        assert dispatch.choose("auto", cuda, dtype) == ("fused", "compiled by Triton for the GPU")
    monkeypatch.setattr(dispatch, "_triton_failure", lambda _: "there is none")
    monkeypatch.setattr(dispatch, "_failures", {})
    dispatch.choose.cache_clear()
    assert dispatch.choose("auto", cuda, torch.float32) == ("torch", "there is none")
    dispatch.choose.cache_clear()


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU that works")
def test_what_keeps_triton_from_working(monkeypatch: pytest.MonkeyPatch) -> None:
    cuda, asked = torch.device("cuda", 1), []
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: (6, 1))
    assert dispatch._unsupported(cuda) == "Triton needs compute capability 7.0, and the GPU has 6.1"
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: (9, 0))
    assert dispatch._unsupported(cuda) == ""
    monkeypatch.setattr(torch.cuda, "device", lambda device: asked.append(device) or nullcontext())
    assert dispatch._triton_failure(cuda).startswith("Triton does not work here (")  # no driver
    assert asked == [cuda]  # x's device, and not the current one
    monkeypatch.setitem(sys.modules, "triton", None)
    assert "triton" in dispatch._triton_failure(cuda)


def test_a_kernel_that_triton_cannot_compile_is_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    class Kernel:
        def __getitem__(self, grid: object) -> Any:
            def run(*_: object, **__: object) -> None:
                raise OutOfResources(200_000, 100_000, "shared memory")

            return run

    monkeypatch.setattr(launch, "get_kernel", lambda *_: Kernel())
    reported: list[KernelError] = []
    monkeypatch.setattr(wavefront_operator, "report_failure", lambda device, error: reported.append(error))
    with pytest.raises(KernelError, match="shared memory"):
        MDLSTM(2, 3)(torch.ones(1, 2, 2, 2, device=DEVICE))
    assert len(reported) == 1
