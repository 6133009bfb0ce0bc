"""The fused sweep for CUDA against the oracle in float64: outputs and every gradient.

With a GPU the kernels are compiled and run there. Without one they run in Triton's interpreter on the CPU
(`conftest.py` sees to that), with the engine put in place of the CPU's; small shapes, since it is slow.
"""

from __future__ import annotations

import re
import subprocess
import sys
from contextlib import nullcontext
from dataclasses import replace
from itertools import cycle
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import pytest
import torch
from helpers.functions import FUNCTIONS, assert_precise, whole_range
from helpers.own_cells import OWN_CELLS, register_own_cells, run_all_operations
from helpers.parity import LAYOUTS, Case

from mdlstm_tk import MDLSTM, Gate, backends, register_cell
from mdlstm_tk import sweep as sweep_module
from mdlstm_tk.backends.specialize import KernelError
from mdlstm_tk.cells import BUILT_IN_CELLS

pytest.importorskip("triton", reason="there is no Triton for this system")
import triton
import triton.language as tl
from triton.runtime.errors import OutOfResources

from mdlstm_tk.backends.cuda import kernels, sweep

CELLS = [cell for cell in (*BUILT_IN_CELLS, *OWN_CELLS) if cell != "all-operations"]
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
pytestmark = pytest.mark.usefixtures("fresh_registries", "poisoned_memory", "one_thread")


@pytest.fixture(autouse=True)
def _engine(fresh_registries: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every sweep that is not `reference`'s goes to the engine for CUDA."""
    monkeypatch.setattr(sweep_module, "engine", lambda *_: sweep)
    register_own_cells()


TWO: Any = ((1, -1), (-1, -1))
PLAIN = Case(grid=(3, 2), units=3)


def _cases() -> list[Case]:
    halves = cycle(("float16", "bfloat16"))
    cells = [
        *(replace(PLAIN, cell=cell, directions="all", sizes=True) for cell in CELLS),
        *(replace(PLAIN, cell=cell, grid=(2, 1, 2), states=True) for cell in BUILT_IN_CELLS),
        *(replace(PLAIN, cell=cell, layer_norm=True, dtype="float32") for cell in CELLS),
        *(replace(PLAIN, cell=cell, recompute=True, dtype=next(halves)) for cell in CELLS),
        *(replace(PLAIN, cell=cell, directions=TWO, sizes=True, states=True) for cell in CELLS),
    ]
    options = [
        *(replace(PLAIN, grid=grid, peephole=True, sizes=True) for grid in ((3,), (2, 2), (2, 1, 2))),
        replace(PLAIN, layer_norm=True, peephole=True, directions=TWO, states=True),
        replace(PLAIN, layer_norm=True, peephole=True, recompute=True, dtype="float16"),
        replace(PLAIN, recompute=True, directions=TWO, sizes=True, states=True),
        replace(PLAIN, bias=False),
        *(Case("all-operations", (2, 2), states=True, dtype=dtype) for dtype in ("float32", "float64")),
    ]
    halves_with_states = [
        replace(PLAIN, cell="leaky", grid=(2, 2), directions=TWO, sizes=True, states=True, dtype=dtype)
        for dtype in ("float32", "float16", "bfloat16")
    ]
    shapes = [
        *(replace(PLAIN, grid=grid) for grid in [(1, 1), (1, 7), (7, 1), (5, 8), (1, 1, 1)]),
        *(replace(PLAIN, batch=batch, directions=TWO, states=True) for batch in (0, 1)),
        *(replace(PLAIN, units=units) for units in (1, 4, 21)),
        replace(PLAIN, cell="stable", grid=(2, 1, 1, 2), directions=((1, -1, 1, -1),)),
        *(replace(PLAIN, layout=layout, channels_last=False) for layout in LAYOUTS[1:]),
        replace(PLAIN, window=2, num_layers=2, merge="sum", wants="weights", sizes=True),
        replace(PLAIN, window=(1, 2), num_layers=2, directions=TWO, merge="mean", wants="x"),
    ]
    return [*cells, *options, *halves_with_states, *shapes]


@pytest.mark.parametrize("case", _cases(), ids=str)
def test_agrees_with_the_oracle(case: Case) -> None:
    case.check("auto", DEVICE)


def test_backward_of_a_captured_graph_gets_more_rows_than_there_are() -> None:
    """Gates and states then have zeros in place of a ragged batch's padding."""
    layer = MDLSTM(2, 3, directions="all", cell="fast-and-slow").to(DEVICE, torch.float64)
    x = torch.randn(2, 2, 3, 2, dtype=torch.float64, device=DEVICE, requires_grad=True)
    sizes = torch.tensor([[2, 1], [1, 3]])
    leaves = [x, *layer.parameters()]
    results = [
        torch.autograd.grad(run(x, sizes).square().sum(), leaves)
        for run in (layer, torch.compile(layer, backend="aot_eager"))
    ]
    for one, other in zip(*results, strict=True):
        torch.testing.assert_close(one, other)


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
    monkeypatch.setattr(sweep, "UNITS", 4)
    monkeypatch.setattr(sweep, "ELEMENTS", 32 if layer_norm else 8)
    case = Case(grid=(2, 3), units=9, directions=((1, -1), (-1, 1)), layer_norm=layer_norm, peephole=True)
    case.check("auto", DEVICE)


@pytest.mark.parametrize("cell", ["graves", "slstm", "gru"])
def test_inference_equals_training(cell: str) -> None:
    """Without a backward to come, states go where the pre-activations were, if there is room."""
    case = Case(cell, grid=(3, 2), batch=2, units=3)
    layer = case.layer("auto", torch.float64).to(DEVICE)
    x = torch.randn(2, 3, 2, 2, dtype=torch.float64, device=DEVICE)
    with torch.no_grad():
        y = layer(x)
    assert torch.equal(y, layer(x))


def test_two_runs_are_equal_to_the_bit() -> None:
    case = Case(grid=(2, 3), batch=2, units=3, layer_norm=True, peephole=True, dtype="float32")
    one, other = (case.run("auto", torch.float32, DEVICE) for _ in range(2))
    assert all(torch.equal(one[name], other[name]) for name in one)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["float32", "float64"])
def test_functions_over_their_whole_range(dtype: torch.dtype) -> None:
    """Each of the table, to the last digits of its result, however small that is; NaN stays NaN."""
    x = whole_range(dtype).to(DEVICE)
    results = run_all_operations("any-numbers", x, x.flip(0))
    for name in FUNCTIONS:
        assert_precise(name, x.cpu(), results[name].cpu(), 8 if dtype == torch.float32 else 4)
    for name, others in {"maximum": (x.flip(0),), "minimum": (x.flip(0),), "relu": ()}.items():
        expected = getattr(torch, name)(x, *others)
        torch.testing.assert_close(results[name], expected, rtol=0, atol=0, equal_nan=True)


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


def test_a_cell_that_is_defined_anew_gets_other_kernels() -> None:
    def output(factor: float) -> torch.Tensor:
        define = register_cell("changing", gates=[Gate("g", "tanh")], states=(), recurrent=False)
        define(lambda gates, _: (gates[0] * factor, {}))
        torch.manual_seed(0)
        return MDLSTM(1, 2, cell="changing").to(DEVICE)(torch.ones(1, 1, 1, 1, device=DEVICE))

    one, two, again = map(output, (1.0, 2.0, 1.0))
    assert torch.equal(two, 2 * one) and torch.equal(again, one)


@pytest.mark.weekly
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
    assert len(assembly) == 16
    assert not any(re.search(r"\b(atom|red)\.", text) for text in assembly)
    for path in tmp_path.glob("*.ttir"):
        body = [line for line in path.read_text().splitlines() if "tt.func" not in line]
        uses = [line for line in body if re.search(r"%(t|batch|positions|lines|blocks)\b", line)]
        assert uses and all(re.search(r"= arith.extsi %\w+ : i32 to i64", line) for line in uses), uses


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU that works")
def test_which_backend_runs_on_a_gpu_and_why(monkeypatch: pytest.MonkeyPatch) -> None:
    cuda, asked = torch.device("cuda", 1), []
    capability = Mock(return_value=(6, 1))
    monkeypatch.setattr(torch.cuda, "get_device_capability", capability)
    monkeypatch.setattr(torch.cuda, "device", lambda device: asked.append(device) or nullcontext())

    def choose() -> tuple[str, str]:
        backends._fused.cache_clear()
        backends._failures.clear()
        return backends.choose("auto", cuda)

    assert choose() == ("torch", "fused kernels are for NVIDIA GPUs of compute capability 7.0 or more")
    capability.return_value = (7, 0)
    name, reason = choose()  # there is no driver
    assert name == "torch" and reason.startswith("Triton does not work here (")
    assert asked == [cuda]  # x's device, and not the current one
    monkeypatch.setitem(sys.modules, "triton", None)
    assert "triton" in choose()[1]
    monkeypatch.setattr(backends, "_try_compiler", lambda _: None)
    assert choose() == ("fused", "compiled by Triton")
    backends._fused.cache_clear()
    backends._failures.clear()


def test_a_kernel_that_triton_cannot_compile_is_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    class Kernel:
        def __getitem__(self, grid: object) -> Any:
            def run(*_: object, **__: object) -> None:
                raise OutOfResources(200_000, 100_000, "shared memory")

            return run

    monkeypatch.setattr(sweep, "get_kernel", lambda *_: Kernel())
    with pytest.raises(KernelError, match="shared memory"):
        MDLSTM(2, 3)(torch.ones(1, 2, 2, 2, device=DEVICE))
