"""The visiting order against brute force, over grids with up to four axes."""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mdlstm_tk.errors import InputError
from mdlstm_tk.wavefront import resolve_directions, visiting_order, wavefronts

grids = st.lists(st.integers(1, 6), min_size=1, max_size=4).map(tuple)


@given(grids)
def test_every_position_is_visited_once_and_inverse_inverts(grid: tuple[int, ...]) -> None:
    front = wavefronts(grid)
    assert sorted(front.order) == list(range(int(np.prod(grid))))
    assert (front.inverse_order[front.order] == np.arange(len(front.order))).all()


@given(grids)
def test_wavefronts_are_the_positions_of_equal_coordinate_sum(grid: tuple[int, ...]) -> None:
    front = wavefronts(grid)
    assert len(front) == 1 + sum(extent - 1 for extent in grid)
    for t in range(len(front)):
        found = [tuple(map(int, np.unravel_index(p, grid))) for p in front.order[front.slice(t)]]
        assert found == [p for p in product(*map(range, grid)) if sum(p) == t]


@given(grids)
def test_predecessors_lie_on_the_previous_wavefront(grid: tuple[int, ...]) -> None:
    front = wavefronts(grid)
    for t in range(len(front)):
        places = front.previous(t)
        assert places.shape == (len(grid), front.starts[t + 1] - front.starts[t])
        before = front.order[front.slice(t - 1)] if t else np.array([], np.int64)
        for d in range(len(grid)):
            for position, place in zip(front.order[front.slice(t)], places[d], strict=True):
                wanted = list(np.unravel_index(position, grid))
                wanted[d] -= 1
                if wanted[d] < 0:
                    assert place == -1
                else:
                    assert tuple(np.unravel_index(before[place], grid)) == tuple(wanted)


@given(grids)
def test_successors_are_inverse_to_predecessors(grid: tuple[int, ...]) -> None:
    front = wavefronts(grid)
    for predecessors, successors in zip(front.predecessors, front.successors, strict=True):
        (visits,) = np.nonzero(predecessors >= 0)
        expected = np.full(len(predecessors), -1)
        expected[predecessors[visits]] = visits
        assert (successors == expected).all()


@pytest.mark.parametrize("grid", [(70_000,), (2, 66_000)])
def test_more_wavefronts_than_fit_16_bits(grid: tuple[int, ...]) -> None:
    front = wavefronts(grid)
    sums = np.indices(grid).reshape(len(grid), -1).sum(axis=0)[front.order]
    assert (np.diff(sums) >= 0).all() and len(front) == sums[-1] + 1


@given(grids, st.data())
def test_a_direction_visits_its_own_corner_first_and_mirrors_the_grid(
    grid: tuple[int, ...], data: st.DataObject
) -> None:
    direction = tuple(data.draw(st.lists(st.sampled_from([1, -1]), min_size=len(grid), max_size=len(grid))))
    order = visiting_order(grid, direction)
    corner = tuple(0 if sign > 0 else extent - 1 for sign, extent in zip(direction, grid, strict=True))
    assert tuple(np.unravel_index(order[0], grid)) == corner
    straight = np.array(np.unravel_index(wavefronts(grid).order, grid))
    mirrored = np.array(np.unravel_index(order, grid))
    for axis, (sign, extent) in enumerate(zip(direction, grid, strict=True)):
        expected = straight[axis] if sign > 0 else extent - 1 - straight[axis]
        assert (mirrored[axis] == expected).all()


def test_all_directions_come_in_the_documented_order() -> None:
    assert resolve_directions("all", 2) == [(1, 1), (1, -1), (-1, 1), (-1, -1)]
    assert resolve_directions(1, 3) == [(1, 1, 1)]
    assert resolve_directions([(-1, 1)], 2) == [(-1, 1)]


@pytest.mark.parametrize("bad", [0, 2, "both", [], [(1,)], [(1, 0)], [(1, 1), (1, 1)]])
def test_other_directions_are_refused(bad: object) -> None:
    with pytest.raises(InputError, match="directions must be"):
        resolve_directions(bad, 2)  # type: ignore[arg-type]


@pytest.mark.parametrize("bad", [(), (0,), (3, -1)])
def test_impossible_grids_are_refused(bad: tuple[int, ...]) -> None:
    with pytest.raises(InputError, match="a grid needs"):
        wavefronts(bad)
