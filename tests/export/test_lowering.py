"""Sweeps in standard operators against float64: any two of cell, axes, form, directions, sizes and states.

The captured graphs are built by hand, each with a single sweep, so few tests run the exporter.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from helpers.networks import Step
from helpers.own_cells import OWN_CELLS, register_own_cells
from helpers.pairs import all_pairs
from helpers.sweeps import CHANNELS, FORMS, GRIDS, Sweep, lowered, random_x, run
from onnx.reference import ReferenceEvaluator
from torch import nn

from mdlstm_tk.cells import BUILT_IN_CELLS, get_cell
from mdlstm_tk.errors import MDLSTMError
from mdlstm_tk.export import export_onnx, lower, verify_model
from mdlstm_tk.runtime import Session
from mdlstm_tk.runtime.model_check import check_model

TWO = {1: [(1,), (-1,)], 2: "all", 3: [(1, -1, 1), (-1, 1, -1)], 4: [(1, 1, 1, 1), (-1, 1, -1, 1)]}
OPTIONS: dict[str, Any] = {
    "cell": (*BUILT_IN_CELLS, *OWN_CELLS),
    "ndim": [*GRIDS],
    "form": FORMS,
    "extra": ["", "sizes", "states"],
    "directions": [1, "two"],
    "layer_norm": [False, True],
    "peephole": [False, True],
    "bias": [True, False],
    "units": [3, 65],
    "dtype": [np.float32, np.float16],
    "grid": ["usual", "one position", "row", "column"],
}
PAIRS = [row for seed in (0, 1) for row in all_pairs(seed, **OPTIONS)]


@pytest.fixture(autouse=True)
def _own_cells(fresh_registries: None) -> None:
    register_own_cells()


def grids(ndim: int) -> dict[str, tuple[int, ...]]:
    ones = (1,) * (ndim - 1)
    return {"usual": GRIDS[ndim], "one position": (1, *ones), "row": (*ones, 7), "column": (7, *ones)}


def evaluated(model: onnx.ModelProto, **inputs: np.ndarray) -> Any:
    """All outputs of a model, by the evaluator of onnx, which each export is verified with."""
    return ReferenceEvaluator(model).run(None, inputs)


def largest_error(
    runtime: Callable[..., Any],
    sweep: Sweep,
    model: onnx.ModelProto,
    batch: int,
    grid: tuple[int, ...],
    extra: str,
) -> float:
    """Of y, and of the final states in units of the largest one.

    Args:
        runtime: `run` or `evaluated`.
        sweep, model: the truth, and what it was lowered to.
        batch, grid: of a random x.
        extra: "sizes" or "states", which the model takes beside x.
    """
    x = random_x(batch, grid, sweep.weights["weight_ih"].dtype.type)
    optional = {}
    if extra == "states":
        optional = {"initial": sweep.random_states(batch, grid)}
    if extra == "sizes":
        extents = [np.maximum(1, np.asarray(grid) - k) for k in range(batch)]
        optional = {"sizes": np.stack(extents).astype(np.int64)}
    actual, exact = runtime(model, x=x, **optional), sweep.exact_results(x, **optional)
    assert [y.dtype for y in actual] == [x.dtype, np.float32][: len(exact)]
    errors = [np.abs(a - b).max() / max(1.0, np.abs(b).max()) for a, b in zip(actual, exact, strict=True)]
    return float(np.max(errors))  # which does not pass over NaN, as `max` does


@pytest.mark.parametrize("options", PAIRS, ids=lambda row: "-".join(map(str, row.values())))
def test_every_sweep_agrees_with_float64(options: dict[str, Any]) -> None:
    cell, ndim, form, extra, dtype = (options[n] for n in ("cell", "ndim", "form", "extra", "dtype"))
    directions = 1 if options["directions"] == 1 else TWO[ndim]
    switches = {"layer_norm": options["layer_norm"], "bias": options["bias"] or options["layer_norm"]}
    switches["peephole"] = options["peephole"] and get_cell(cell).peephole
    sweep, grid = Sweep.random(cell, directions, ndim, options["units"], dtype, **switches), options["grid"]
    own = grids(ndim)[grid]
    model = lowered(sweep, form, own, sizes=extra == "sizes", states=extra == "states")
    check_model(model.SerializeToString(), "the model")
    atol = 1e-5 if dtype is np.float32 else 5e-3
    for batch in (1, 3):
        assert largest_error(run, sweep, model, batch, own, extra) <= atol
    for other in grids(ndim).values() if form == "scan" else ():
        assert largest_error(run, sweep, model, 2, other[::-1], extra) <= atol
    if dtype is np.float32 and options["units"] < 65:
        assert largest_error(evaluated, sweep, model, 2, own, extra) <= atol


@pytest.mark.parametrize("form", FORMS)
def test_a_float16_sweep_keeps_its_state_in_float32(form: str) -> None:
    sweep, grid = Sweep.random(ndim=1, units=1, dtype=np.float16), (257,)
    sweep.weights["weight_hh"][:] = 0
    sweep.weights["weight_ih"][:] = [[0, 0], [0, 0], [1, 0], [0, 0]]
    sweep.weights["bias"][:] = [20, 20, 0, 20]  # i = f = o = 1 and g = tanh(x), so c is the sum of tanh(x)
    x = np.full((1, *grid, CHANNELS), 2**-12, np.float16)  # lost when added to 1 in float16
    x[:, 0] = 20
    (y,) = run(lowered(sweep, form, grid), x=x)
    assert np.abs(y - sweep.exact(x)).max() <= 1e-3


def test_a_sweep_that_cannot_be_lowered_is_refused() -> None:
    sweep = Sweep.random()
    computed = sweep.captured((3, 3))
    computed.graph.node[0].input[1] = "elsewhere"
    other = Sweep.random("gru").captured((3, 3))
    cell = next(each for each in other.graph.node[0].attribute if each.name == "cell")
    cell.s = b"gru@012345678901"  # defined again since then, with other equations
    both = Sweep.random().captured((3, 3), sizes=True, states=True)
    for model in (Sweep.random().captured((-1, 3)), computed, other, both):
        with pytest.raises(MDLSTMError):
            lower(model)


@pytest.mark.parametrize("form", FORMS)
def test_a_network_with_states_is_exported_and_runs_row_by_row(form: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    network, width = Step(), 5
    for parameter in network.parameters():
        nn.init.normal_(parameter, std=0.4)
    states = torch.randn(2, 2, 2, width, 3).unbind()
    examples = (torch.randn(2, 1, width, 2), *states)
    report = export_onnx(network, tmp_path / "m.onnx", examples, grid=(1, width), form=form)  # type: ignore[arg-type]
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
