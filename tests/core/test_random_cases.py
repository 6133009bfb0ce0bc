"""Random cells, grids, sizes, states, cuts and tiles against the reference.

`conftest.py` draws the same examples each time; `--hypothesis-profile=default` draws others.
"""

from __future__ import annotations

from dataclasses import replace
from functools import partial

import pytest
from helpers.cuts import check_parts
from helpers.parity import Case
from helpers.random_cases import cases, kernels, random_kernels
from hypothesis import given, settings
from hypothesis import strategies as st

pytestmark = pytest.mark.usefixtures("fresh_registries", "poisoned_memory", "one_thread")


@settings(max_examples=40)
@given(random_kernels().flatmap(cases))
def test_the_torch_backend_computes_any_cell(case: Case) -> None:
    case.check("torch")


@settings(max_examples=6)  # each cell compiles for some seconds
@given(random_kernels().flatmap(cases))
def test_the_fused_backend_computes_any_cell(case: Case) -> None:
    case.check("fused")


@settings(max_examples=30)
@given(
    kernels().flatmap(partial(cases, one_direction=True)), st.sampled_from(["torch", "fused"]), st.data()
)
def test_a_grid_cut_anywhere_equals_the_whole(case: Case, backend: str, data: st.DataObject) -> None:
    """The gradient that leaves one part through its initial states enters the part before through its final
    ones, so chained parts also show that."""
    cuts = []
    for extent in case.grid:
        places = st.sets(st.integers(1, extent - 1), max_size=3) if extent > 1 else st.just(set())
        cuts.append(sorted(data.draw(places)))
    check_parts(case, cuts, backend)


@settings(max_examples=30)
@given(kernels().flatmap(cases), st.data())
def test_tiles_of_any_size_equal_the_whole(case: Case, data: st.DataObject) -> None:
    tile = tuple(case.window * data.draw(st.integers(1, 3)) for _ in case.grid)
    replace(case, tile=tile).check("auto")
