"""Every backend against the oracle in float64: outputs, final states and every gradient.

Any two options meet in a case. Fresh memory is poisoned with NaN throughout, so that a kernel that reads
memory which nobody wrote shows.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from helpers.own_cells import register_own_cells
from helpers.pairs import all_pairs
from helpers.parity import KERNELS, LAYOUTS, Case

BACKENDS = ("torch", "fused")
GRIDS = {  # the last one has wavefronts of several lengths
    1: ((1,), (7,), (6,), (9,)),
    2: ((1, 1), (1, 7), (7, 1), (5, 8)),
    3: ((1, 1, 1), (3, 1, 4), (1, 2, 5), (2, 3, 4)),
}
SIGNS = {"backwards": lambda ndim: ((-1,) * ndim,), "two": lambda ndim: ((1,) * ndim, (-1, 1, -1)[:ndim])}

SHAPES: list[dict[str, Any]] = [  # of one kernel, beside those that are combined
    *({"grid": grid, "units": 21} for grid in ((8, 5), (5, 8))),
    *({"batch": batch, "sizes": sizes} for batch in (1, 40) for sizes in (False, True)),  # 40: many blocks
    {"batch": 40, "bias": False, "recompute": True, "units": 16},
    {"units": 40},
    {"directions": ((-1, 1),), "units": 16},
    {"grid": (2, 1, 3, 2), "directions": ((1, -1, 1, -1),), "states": True},
    {"grid": (2, 1, 3, 2), "cell": "slstm", "directions": ((1, -1, 1, -1),), "sizes": True},
]


def _cases() -> list[Case]:
    rows = all_pairs(
        kernel=KERNELS,
        grid=range(4),
        directions=[1, "all", "backwards", "two"],
        batch=[2, 3, 0],
        units=[1, 4, 5],
        layout=LAYOUTS,
        wants=["all", "x", "weights"],
        window=[1, 2, (2, 1, 3)],
        num_layers=[1, 2],
        merge=["concat", "sum", "mean"],
        channels_last=[True, False],
        bias=[True, False],
        sizes=[False, True],
        states=[False, True],
    )
    cases = []
    for row in rows:
        kernel = dict(row.pop("kernel"))
        ndim = kernel.pop("ndim")
        row["grid"] = GRIDS[ndim][row["grid"]]
        if isinstance(row["window"], tuple):
            row["window"] = row["window"][:ndim]
        if row["directions"] in SIGNS:
            row["directions"] = SIGNS[row["directions"]](ndim)
        if kernel.get("layer_norm"):
            row["bias"] = True
        cases.append(Case(**kernel, **row))
    return [*cases, *(Case(**shape) for shape in SHAPES)]


pytestmark = pytest.mark.usefixtures("poisoned_memory", "one_thread")


@pytest.fixture(autouse=True)
def _own_cells(fresh_registries: None) -> None:
    register_own_cells()


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("case", _cases(), ids=str)
def test_agrees_with_the_oracle(case: Case, backend: str) -> None:
    case.check(backend)


def test_backward_may_run_twice() -> None:
    layer = Case().layer("fused")
    y = layer(torch.randn(3, 5, 8, 2, dtype=torch.float64)).sum()
    first = torch.autograd.grad(y, tuple(layer.parameters()), retain_graph=True)
    second = torch.autograd.grad(y, tuple(layer.parameters()))
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))
