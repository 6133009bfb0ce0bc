"""The fused sweep for CUDA against the oracle in float64: outputs and every gradient.

With a GPU the kernels are compiled and run there. Without one they run in Triton's interpreter on the CPU
(`conftest.py` sees to that), with the engine put in place of the CPU's; small shapes, since it is slow.
"""

from __future__ import annotations

import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from helpers.functions import FUNCTIONS, assert_precise, whole_range
from helpers.own_cells import OWN_CELLS, register_own_cells, run_all_operations
from helpers.parity import Case, combined

from mdlstm_tk import MDLSTM
from mdlstm_tk import sweep as sweep_module
from mdlstm_tk.cells import BUILT_IN_CELLS

pytest.importorskip("triton", reason="there is no Triton for this system")
from mdlstm_tk.backends.cuda import sweep

CELLS = [cell for cell in (*BUILT_IN_CELLS, *OWN_CELLS) if cell != "all-operations"]
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
pytestmark = pytest.mark.usefixtures("fresh_registries", "poisoned_memory")


@pytest.fixture(autouse=True)
def _engine(fresh_registries: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every sweep goes to the engine for CUDA."""
    monkeypatch.setattr(sweep_module, "engine", lambda *_: sweep)
    monkeypatch.setattr(sweep_module, "_engine_of_graphs", lambda *_: sweep)
    register_own_cells()


GRIDS = {1: ((1,), (3,)), 2: ((1, 4), (3, 2)), 3: ((2, 1, 2), (1, 1, 1))}
PLAIN = Case(grid=(3, 2), units=3)
CASES = [
    *(replace(case, num_layers=1, batch=min(case.batch, 2)) for case in combined(GRIDS)),
    *(replace(PLAIN, cell=cell, recompute=True, dtype="float16") for cell in CELLS),
    replace(PLAIN, cell="stable", grid=(2, 1, 1, 2), directions=((1, -1, 1, -1),)),
    *(replace(PLAIN, units=21, grid=grid) for grid in ((7, 1), (5, 8))),
]


@pytest.mark.parametrize("case", CASES, ids=str)
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


@pytest.mark.parametrize("layer_norm", [False, True], ids=["plain", "norm"])
def test_many_programs_a_wavefront(layer_norm: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Programs of 2 rows, and of 4 units where no layer norm needs all of them."""
    monkeypatch.setattr(sweep, "UNITS", 4)
    monkeypatch.setattr(sweep, "ELEMENTS", 32 if layer_norm else 8)
    case = Case(grid=(2, 2), units=6, directions=((1, -1), (-1, 1)), layer_norm=layer_norm, peephole=True)
    case.check("auto", DEVICE)


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
        uses = [line for line in body if re.search(r"%(t|rows|lines|blocks)\b", line)]
        assert uses and all(re.search(r"= arith.extsi %\w+ : i32 to i64", line) for line in uses), uses
