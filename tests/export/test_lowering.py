"""Sweeps in standard operators: every cell, form, direction, dimension and size against float64.

The captured graphs are built by hand, each with a single sweep, so no test runs the exporter.
"""

from __future__ import annotations

from itertools import cycle, product
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from helpers.own_cells import OWN_CELLS, register_own_cells
from helpers.sweeps import CHANNELS, FORMS, GRIDS, Sweep, lowered, random_x
from onnx.reference import ReferenceEvaluator

from mdlstm_tk.cells import BUILT_IN_CELLS
from mdlstm_tk.errors import MDLSTMError
from mdlstm_tk.export import lower
from mdlstm_tk.export.lowering import lower as lower_module
from mdlstm_tk.export.lowering import scan
from mdlstm_tk.export.lowering.functions import outline
from mdlstm_tk.wavefront import Direction, wavefronts

CELLS = (*BUILT_IN_CELLS, *OWN_CELLS)


@pytest.fixture(autouse=True)
def _own_cells(fresh_registries: None) -> None:
    register_own_cells()


def run(model: onnx.ModelProto, **inputs: np.ndarray) -> np.ndarray:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, ["CPUExecutionProvider"])
    return session.run(None, inputs)[0]


def _sweeps() -> list[tuple[Any, ...]]:
    """Every cell with every number of axes and form. Directions and sizes take turns, so that any three of
    the five values meet."""
    turns = list(product([1, "all"], [False, True]))
    cases = enumerate(product(CELLS, GRIDS, FORMS))
    return [(*case, *turns[(k + k // 12) % 4]) for k, case in cases]


@pytest.mark.parametrize(("cell", "ndim", "form", "directions", "sizes"), _sweeps(), ids=str)
def test_every_sweep_agrees_with_float64_within_1e_5(
    cell: str, ndim: int, form: str, directions: int | str | list[Direction], sizes: bool
) -> None:
    if ndim == 4 and directions == "all":
        directions = [(1, 1, 1, 1), (-1, 1, -1, 1)]  # all 16 would take too long
    sweep, grid = Sweep.random(cell, directions, ndim), GRIDS[ndim]
    model = lowered(sweep, form, grid, sizes)
    for batch in (1, 3):
        x = random_x(batch, grid)
        optional = {}
        if sizes:
            extents = [np.maximum(1, np.asarray(grid) - k) for k in range(batch)]
            optional["sizes"] = np.stack(extents).astype(np.int64)
        error = np.abs(run(model, x=x, **optional) - sweep.exact(x, **optional))
        assert error.max() <= 1e-5


OPTIONS = {
    "no bias": {"bias": False},
    "peephole": {"peephole": True},
    "layer norm": {"layer_norm": True},
    "three states, layer norm, all": {"cell": "slstm", "layer_norm": True, "directions": "all"},
    "three states, many units": {"cell": "slstm", "units": 65},
    "peephole, layer norm": {"peephole": True, "layer_norm": True},
    "many units": {"units": 65},
    "two backwards": {"directions": [(-1, 1), (-1, -1)]},
}


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("option", OPTIONS)
def test_every_option_agrees_with_float64_within_1e_5(option: str, form: str) -> None:
    sweep = Sweep.random(**OPTIONS[option])
    for grid in ((4, 3), (3, 4)):
        x = random_x(2, grid)
        error = np.abs(run(lowered(sweep, form, grid), x=x) - sweep.exact(x))
        assert error.max() <= 1e-5


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("cell", ["stable", "slstm"])
def test_odd_grids_agree_with_float64(cell: str, form: str) -> None:
    sweep = Sweep.random(cell, "all")
    free = lowered(sweep, form, (1, 1)) if form == "scan, free" else None
    for grid in ((1, 1), (1, 7), (7, 1), (5, 8), (8, 5), (2, 2)):
        x = random_x(2, grid)
        model = free or lowered(sweep, form, grid)
        np.testing.assert_allclose(run(model, x=x), sweep.exact(x), rtol=0, atol=1e-6, err_msg=str(grid))


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"cell": "leaky", "directions": "all"},
        {"peephole": True, "layer_norm": True},
        {"cell": "slstm", "directions": "all"},
        {"cell": "gru"},
    ],
    ids=["graves", "leaky, all", "peephole, layer norm", "slstm, all", "gru"],
)
def test_float16_agrees_with_float64_within_5e_3(options: dict, form: str) -> None:
    sweep, grid = Sweep.random(dtype=np.float16, **options), (6, 5)
    model = lowered(sweep, form, grid, sizes=True)
    x, sizes = random_x(3, grid, np.float16), np.asarray([[6, 5], [2, 3], [1, 1]])
    y = run(model, x=x, sizes=sizes)
    assert y.dtype == np.float16
    assert np.abs(y - sweep.exact(x, sizes)).max() <= 5e-3


@pytest.mark.parametrize("form", FORMS)
def test_a_float16_sweep_keeps_its_state_in_float32(form: str) -> None:
    sweep, grid = Sweep.random(ndim=1, units=1, dtype=np.float16), (257,)
    sweep.weights["weight_hh"][:] = 0
    sweep.weights["weight_ih"][:] = [[0, 0], [0, 0], [1, 0], [0, 0]]
    sweep.weights["bias"][:] = [20, 20, 0, 20]  # i = f = o = 1 and g = tanh(x), so c is the sum of tanh(x)
    x = np.full((1, *grid, CHANNELS), 2**-12, np.float16)  # lost when added to 1 in float16
    x[:, 0] = 20
    y = run(lowered(sweep, form, grid), x=x)
    assert np.abs(y - sweep.exact(x)).max() <= 1e-3


@pytest.mark.parametrize(("cell", "form"), list(zip(CELLS, cycle(FORMS), strict=False)))
def test_the_reference_evaluator_agrees(cell: str, form: str) -> None:
    sweep, grid = Sweep.random(cell, [(1, 1), (-1, 1)]), (3, 4)
    model, x = lowered(sweep, form, grid, sizes=True), random_x(2, grid)
    sizes = np.asarray([[3, 4], [2, 1]])
    outputs = ReferenceEvaluator(model).run(None, {"x": x, "sizes": sizes})
    assert isinstance(outputs, list)
    np.testing.assert_allclose(outputs[0], sweep.exact(x, sizes), rtol=0, atol=1e-6)


def test_an_unrolled_graph_grows_with_the_wavefronts_and_a_scan_does_not() -> None:
    sweep = Sweep.random(directions="all")
    counts = {}
    for form in FORMS:
        for extent in (8, 16, 32):
            counts[form, extent] = len(lowered(sweep, form, (extent, extent)).graph.node)
    assert counts["unrolled", 32] - counts["unrolled", 16] == 2 * (
        counts["unrolled", 16] - counts["unrolled", 8]
    )
    assert len({counts["scan", extent] for extent in (8, 16, 32)}) == 1
    assert counts["scan", 8] < counts["scan, free", 8] < counts["unrolled", 8]


def test_functions_give_one_named_node_per_wavefront_and_equal_numbers() -> None:
    sweep, grid = Sweep.random("stable", "all"), (6, 5)
    plain = lowered(sweep, "unrolled", grid)
    model = outline(plain)
    onnx.checker.check_model(model, full_check=True)
    calls = [node.name for node in model.graph.node if node.domain]
    steps = len(wavefronts(grid))
    assert calls[:steps] == [f"mdlstm_0/wavefront_{t}" for t in range(steps)]
    assert len(calls) == steps  # for all directions
    assert len(model.functions) < steps  # equal wavefronts share a function
    assert all(node.name for function in model.functions for node in function.node)
    assert len(model.graph.node) < steps + 40
    x = random_x(3, grid)
    np.testing.assert_array_equal(run(model, x=x), run(plain, x=x))


@pytest.mark.parametrize("form", FORMS)
def test_large_grids_are_swept_in_one_direction_after_the_other(
    form: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    sweep, grid = Sweep.random("stable", "all", peephole=False, layer_norm=True), (5, 4)
    together = lowered(sweep, form, grid)
    monkeypatch.setattr(lower_module, "ONE_BY_ONE_FROM", 4)
    monkeypatch.setattr(scan, "MAX_CONSTANT_POSITIONS", 19)
    apart = lowered(sweep, form, grid)
    x = random_x(3, grid)
    np.testing.assert_allclose(run(apart, x=x), run(together, x=x), rtol=0, atol=1e-6)
    is_free = form == "scan, free"
    assert (len(apart.graph.node) > len(together.graph.node)) is not is_free


def test_two_sweeps_in_one_graph() -> None:
    first, second = Sweep.random("stable"), Sweep.random("leaky", [(-1, -1)])
    model = first.captured((3, 4))
    other = second.captured((3, 4))
    for tensor in other.graph.initializer:
        tensor.name += "'"
    node = other.graph.node[0]
    for k, name in enumerate(node.input):
        node.input[k] = f"{name}'" if name and k else name
    node.output[0], node.name = "z", "second"
    model.graph.initializer.extend(other.graph.initializer)
    model.graph.node.append(node)
    model.graph.output.append(other.graph.output[0])
    model.graph.output[1].name = "z"
    x = random_x(2, (3, 4))
    session = onnxruntime.InferenceSession(lower(model, "scan").SerializeToString())
    for y, sweep in zip(session.run(None, {"x": x}), (first, second), strict=True):
        np.testing.assert_allclose(y, sweep.exact(x), rtol=0, atol=1e-6)


def test_a_sweep_that_cannot_be_lowered_is_named() -> None:
    sweep = Sweep.random()
    with pytest.raises(MDLSTMError, match=r"mdlstm: .*\(-1, 3\)"):
        lower(sweep.captured((-1, 3)))
    model = sweep.captured((3, 3))
    model.graph.node[0].input[1] = "elsewhere"
    with pytest.raises(MDLSTMError, match="'elsewhere'"):
        lower(model)
