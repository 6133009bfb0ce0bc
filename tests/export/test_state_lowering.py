"""Sweeps with initial and final states in standard operators, against the float64 reference."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from helpers.own_cells import OWN_CELLS, register_own_cells
from helpers.sweeps import FORMS, GRIDS, Sweep, lowered, random_x
from onnx.reference import ReferenceEvaluator
from torch import Tensor, nn

from mdlstm_tk import MDLSTM, BoundaryState
from mdlstm_tk.cells import BUILT_IN_CELLS
from mdlstm_tk.errors import MDLSTMError
from mdlstm_tk.export import export_onnx, verify_model
from mdlstm_tk.runtime import Session
from mdlstm_tk.runtime.model_check import check_model


@pytest.fixture(autouse=True)
def _own_cells(fresh_registries: None) -> None:
    register_own_cells()


def run(model: onnx.ModelProto, **inputs: np.ndarray) -> list[np.ndarray]:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, ["CPUExecutionProvider"])
    return session.run(None, inputs)


def largest_error(sweep: Sweep, model: onnx.ModelProto, batch: int, grid: tuple[int, ...]) -> float:
    """Of y, and of the final states in units of the largest one."""
    x, initial = random_x(batch, grid), sweep.random_states(batch, grid)
    found, exact = run(model, x=x, initial=initial), sweep.exact_states(x, initial)
    return max(
        float(np.abs(a - b).max() / max(1.0, np.abs(b).max())) for a, b in zip(found, exact, strict=True)
    )


@pytest.mark.parametrize("ndim", GRIDS, ids="{}D".format)
@pytest.mark.parametrize("directions", [1, "all"])
@pytest.mark.parametrize("cell", [*BUILT_IN_CELLS, *OWN_CELLS])
def test_every_cell_agrees_with_float64(cell: str, directions: Any, ndim: int) -> None:
    if ndim > 2 and directions == "all":
        directions = [(1,) * ndim, (-1, 1, -1, 1)[:ndim]]  # all would take too long
    sweep, grid = Sweep.random(cell, directions, ndim), GRIDS[ndim]
    models = [lowered(sweep, form, grid, states=True) for form in ("scan, free", "unrolled")]
    for model in models:
        check_model(model.SerializeToString(), "the model")
        assert largest_error(sweep, model, 1, grid) <= 2e-6
    assert largest_error(sweep, models[0], 3, grid[::-1]) <= 2e-6


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize(
    "options",
    [
        {"bias": False},
        {"peephole": True, "layer_norm": True},
        {"units": 65, "directions": [(-1, 1), (-1, -1)]},
        {"ndim": 3, "peephole": True},
        {"ndim": 1, "layer_norm": True, "directions": [(-1,)]},
        {"cell": "slstm", "layer_norm": True, "directions": "all"},
        {"cell": "gru", "units": 65},
    ],
    ids=str,
)
def test_every_option_agrees_with_float64(options: dict[str, Any], form: str) -> None:
    sweep, grid = Sweep.random(**options), GRIDS[options.get("ndim", 2)]
    assert largest_error(sweep, lowered(sweep, form, grid, states=True), 2, grid) <= 1e-5


@pytest.mark.parametrize("cell", ["stable", "slstm"])
def test_odd_grids_agree_with_float64(cell: str) -> None:
    sweep = Sweep.random(cell, "all")
    model = lowered(sweep, "scan, free", (1, 1), states=True)
    for grid in ((1, 1), (1, 7), (7, 1), (5, 8), (8, 5), (2, 2)):
        assert largest_error(sweep, model, 2, grid) <= 1e-6, grid
        unrolled = lowered(sweep, "unrolled", grid, states=True)
        assert largest_error(sweep, unrolled, 2, grid) <= 1e-6, grid


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("cell", ["graves", "slstm", "gru"])
def test_float16_agrees_with_float64(cell: str, form: str) -> None:
    sweep, grid = Sweep.random(cell, "all", dtype=np.float16), (6, 5)
    x, initial = random_x(2, grid, np.float16), sweep.random_states(2, grid)
    found = run(lowered(sweep, form, grid, states=True), x=x, initial=initial)
    assert [y.dtype for y in found] == [np.float16, np.float32]
    for y, exact in zip(found, sweep.exact_states(x, initial), strict=True):
        assert np.abs(y - exact).max() <= 5e-3 * max(1, np.abs(exact).max())


def test_the_reference_evaluator_agrees() -> None:
    sweep, grid = Sweep.random("leaky", [(1, 1), (-1, 1)]), (3, 4)
    x, initial = random_x(2, grid), sweep.random_states(2, grid)
    evaluator = ReferenceEvaluator(lowered(sweep, "scan, free", grid, states=True))
    found: Any = evaluator.run(None, {"x": x, "initial": initial})
    for y, exact in zip(found, sweep.exact_states(x, initial), strict=True):
        np.testing.assert_allclose(y, exact, rtol=0, atol=1e-6)


class Step(nn.Module):
    """A row of a grid, given the states above it and to its left: what a sampler calls row after row."""

    def __init__(self, **options: Any) -> None:
        super().__init__()
        self.layer, self.head = MDLSTM(2, 3, num_layers=2, **options), nn.Linear(3, 4)

    def forward(self, x: Tensor, h: Tensor, c: Tensor) -> dict[str, Tensor]:
        """h, c: (N, layers, W, n), of the row above."""
        above = tuple(
            BoundaryState((h[:, k, :, None], None), (c[:, k, :, None], None))
            for k in range(self.layer.num_layers)
        )
        y, states = self.layer(x, initial_state=above, return_state=True)
        below = [
            torch.stack([getattr(state, name)[0].squeeze(-2) for state in states], dim=1) for name in "hc"
        ]
        return {"y": self.head(y), "h_n": below[0], "c_n": below[1]}


@pytest.mark.parametrize("form", ["unrolled", "scan"])
def test_a_network_with_states_is_exported_and_runs_row_by_row(form: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    network, width = Step(), 5
    for parameter in network.parameters():
        nn.init.normal_(parameter, std=0.4)
    states = torch.randn(2, 2, 2, width, 3).unbind()
    examples = (torch.randn(2, 1, width, 2), *states)
    report = export_onnx(network, tmp_path / "m.onnx", examples, grid=(1, width), form=form)
    assert report.metadata.output_names == ("y", "h_n", "c_n")
    verify_model(report.path, network, device="cpu", seeds=1).raise_if_failed()
    session, x = Session(report.path, "cpu"), np.random.default_rng(0).normal(size=(1, 6, width, 2))
    h, c = np.zeros((2, 1, 2, width, 3), np.float32)
    rows = []
    for row in np.split(x.astype(np.float32), 6, axis=1):
        result = session(row, h=h, c=c)
        h, c = result["h_n"], result["c_n"]
        rows.append(result["y"])
    with torch.no_grad():
        whole = network.double().head(network.layer(torch.from_numpy(x)))
    np.testing.assert_allclose(np.concatenate(rows, axis=1), whole, rtol=0, atol=1e-5)


class Padded(Step):
    def forward(self, x: Tensor, sizes: Tensor) -> Tensor:
        return self.layer(x, sizes, return_state=True)[0]


def test_states_are_not_exported_together_with_sizes(tmp_path: Path) -> None:
    with pytest.raises(MDLSTMError, match=r"layer: .* cannot be exported with sizes; leave sizes out"):
        export_onnx(Padded(), tmp_path / "m.onnx", grid=(3, 4), padded=True, form="scan")
    assert not list(tmp_path.iterdir())
