"""Every backend against the oracle in float64: outputs, final states and every gradient.

Any two options meet in a case, and cells, grids, cuts and tiles are drawn at random. Fresh memory is
poisoned with NaN throughout, so that a kernel that reads memory which nobody wrote shows. `conftest.py`
draws the same examples each time; `--hypothesis-profile=drawn` draws others.
"""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from itertools import product
from typing import Any
from zlib import crc32

import pytest
from helpers.cuts import check_parts
from helpers.own_cells import arguments, operation, register_own_cells
from helpers.parity import KERNELS, Case, combined
from hypothesis import given, settings
from hypothesis import strategies as st

from mdlstm_tk import Gate, register_cell
from mdlstm_tk.cells import BUILT_IN_CELLS
from mdlstm_tk.cells.graph import OPERATIONS

BACKENDS = ("torch", "fused")
GRIDS = {  # the last one has wavefronts of several lengths
    1: ((1,), (7,), (6,), (9,)),
    2: ((1, 1), (1, 7), (7, 1), (5, 8)),
    3: ((1, 1, 1), (3, 1, 4), (1, 2, 5), (2, 3, 4)),
}
SHAPES: list[dict[str, Any]] = [  # of one kernel, beside those that are combined
    *({"grid": grid, "units": 21} for grid in ((8, 5), (5, 8))),
    *({"batch": batch, "sizes": sizes} for batch in (1, 40) for sizes in (False, True)),  # 40: many blocks
    {"batch": 40, "bias": False, "recompute": True, "units": 16},
    {"units": 40},
    {"directions": ((-1, 1),), "units": 16},
    {"grid": (2, 1, 3, 2), "directions": ((1, -1, 1, -1),), "states": True},
    {"grid": (2, 1, 3, 2), "cell": "slstm", "directions": ((1, -1, 1, -1),), "sizes": True},
    {"grid": (3, 5), "cell": "coupled", "directions": "all", "sizes": True, "states": True},
    {"grid": (7,), "cell": "h-is-c", "layer_norm": True, "recompute": True},
    {"grid": (2, 2, 3), "cell": "all-operations", "dtype": "float32"},
    {"grid": (5, 8), "tile": (4, 3), "window": (2, 3), "sizes": True, "states": True, "merge": "sum"},
    {"grid": (5, 8), "tile": (2, 6), "window": (1, 2), "channels_last": False, "num_layers": 2},
    {"grid": (4, 5), "tile": (2, 3), "batch": 0, "sizes": True, "states": True, "directions": "all"},
    {"grid": (4, 5), "tile": (2, 3), "bias": False, "wants": "weights", "directions": "all"},
    {"grid": (4, 5), "tile": (2, 3), "sizes": True, "num_layers": 2, "merge": "mean", "directions": "all"},
    {"grid": (6, 5), "tile": (5, 4), "dtype": "float16", "states": True, "directions": "all"},
]


CASES = [*combined(GRIDS), *(Case(**shape) for shape in SHAPES)]
pytestmark = pytest.mark.usefixtures("poisoned_memory")


@pytest.fixture(autouse=True)
def _own_cells(fresh_registries: None) -> None:
    register_own_cells()


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("case", CASES, ids=str)
def test_agrees_with_the_oracle(case: Case, backend: str) -> None:
    case.check(backend)


POSITIVE = {"log": (0,), "sqrt": (0,), "divide": (1,)}  # the arguments that must be
DIVIDE = 0.5  # and at least


def bounded(value: Any) -> Any:
    """A value between −1 and 1, so that a program of many steps overflows nowhere."""
    return value / (1 + abs(value))


@st.composite
def register_random_cell(draw: st.DrawFn) -> str:
    """Register a cell whose equations are a random program, and return its name.

    Each instruction appends the result of an operation to a list, which begins with the gates and the
    states; h and the new states are sums of what it holds in the end.
    """
    kinds = st.sampled_from([None, "sigmoid", "tanh"])
    gates = [Gate(f"g{k}", draw(kinds)) for k in range(draw(st.integers(1, 3)))]
    states = tuple("cu"[: draw(st.integers(0, 2))])
    places = st.integers(0, 20)
    program = draw(
        st.lists(st.tuples(st.sampled_from([*OPERATIONS]), places, places), min_size=2, max_size=8)
    )
    shares = draw(st.lists(st.sampled_from([-1.0, -0.5, 0.5, 1.0]), min_size=3, max_size=3))

    def equations(gates: Any, states: Any, output_activation: Any) -> Any:
        values = [bounded(gate) for gate in gates]
        for rows in states.values():
            values.append(bounded(sum((d + 1) * row for d, row in enumerate(rows)) * 0.5))
        for op, *operands in program:
            operands = [values[k % len(values)] for k in operands]
            for k in POSITIVE.get(op, ()):
                operands[k] = abs(operands[k]) + DIVIDE
            values.append(bounded(operation(op, *arguments(op, *operands))))
        last = values[::-1]
        new = {name: bounded(last[k % len(last)] + shares[k] * values[k]) for k, name in enumerate(states)}
        new.pop("h")
        return output_activation(sum(values)) * shares[2], new

    recurrent = draw(st.booleans())
    recipe = repr((gates, states, program, shares, recurrent))
    name = f"random-{crc32(recipe.encode()):08x}"
    register_cell(name, gates=gates, states=states, recurrent=recurrent)(equations)
    return name


# The options that a kernel in float64 of a cell of the package depends on.
kernels = st.sampled_from([k for k in KERNELS if "dtype" not in k and k["cell"] in BUILT_IN_CELLS])


@st.composite
def random_kernels(draw: st.DrawFn) -> dict[str, Any]:
    """A cell of one's own, and what else its kernel depends on."""
    options = {name: draw(st.booleans()) for name in ("layer_norm", "recompute")}
    return {"cell": draw(register_random_cell()), "ndim": draw(st.integers(1, 3)), **options}


@st.composite
def cases(draw: st.DrawFn, kernel: dict[str, Any], one_direction: bool = False) -> Case:
    """A small sweep.

    Args:
        kernel: what its kernel depends on.
        one_direction: whether it has a single direction, window and layer.
    """
    ndim = kernel["ndim"]
    extents = st.integers(1, {1: 9, 2: 4, 3: 3}[ndim])
    corners = st.sampled_from([*product((1, -1), repeat=ndim)])
    options = {name: value for name, value in kernel.items() if name != "ndim"}
    if not one_direction:
        options["sizes"] = draw(st.booleans())
        options["states"] = draw(st.booleans())
        options["window"] = draw(st.integers(1, 2))
        options["num_layers"] = draw(st.integers(1, 2))
    return Case(
        grid=tuple(draw(st.lists(extents, min_size=ndim, max_size=ndim))),
        batch=draw(st.integers(1, 3)),
        units=draw(st.integers(1, 5)),
        directions=tuple(draw(st.lists(corners, min_size=1, max_size=2 - one_direction, unique=True))),
        **options,
    )


@settings(max_examples=40)
@given(random_kernels().flatmap(cases))
def test_the_torch_backend_computes_any_cell(case: Case) -> None:
    case.check("torch")


@settings(max_examples=6)  # each cell compiles for some seconds
@given(random_kernels().flatmap(cases))
def test_the_fused_backend_computes_any_cell(case: Case) -> None:
    case.check("fused")


@settings(max_examples=30)
@given(kernels.flatmap(partial(cases, one_direction=True)), st.sampled_from(["torch", "fused"]), st.data())
def test_a_grid_cut_anywhere_equals_the_whole(case: Case, backend: str, data: st.DataObject) -> None:
    """The gradient that leaves one part through its initial states enters the part before through its final
    ones, so chained parts also show that."""
    cuts = []
    for extent in case.grid:
        places = st.sets(st.integers(1, extent - 1), max_size=3) if extent > 1 else st.just(set())
        cuts.append(sorted(data.draw(places)))
    check_parts(case, cuts, backend)


@settings(max_examples=30)
@given(kernels.flatmap(cases), st.data())
def test_tiles_of_any_size_equal_the_whole(case: Case, data: st.DataObject) -> None:
    tile = tuple(case.window * data.draw(st.integers(1, 3)) for _ in case.grid)
    replace(case, tile=tile).check("auto")
