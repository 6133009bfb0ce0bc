"""The visiting order against brute force, over grids with up to four axes."""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mdlstm_tk.errors import InputError
from mdlstm_tk.wavefront import check_positions, resolve_directions, visiting_order, wavefronts

grids = st.lists(st.integers(1, 6), min_size=1, max_size=4).map(tuple)


@given(grids)
def test_wavefronts_against_brute_force(grid: tuple[int, ...]) -> None:
    front, positions = wavefronts(grid), list(product(*map(range, grid)))
    visited = [positions[place] for place in front.order]
    visit = {position: k for k, position in enumerate(visited)}
    assert len(front) == 1 + sum(extent - 1 for extent in grid)
    for t in range(len(front)):
        assert visited[front.slice(t)] == [p for p in positions if sum(p) == t]
        for d, places in enumerate(front.previous(t)):
            for position, place in zip(visited[front.slice(t)], places, strict=True):
                before = (*position[:d], position[d] - 1, *position[d + 1 :])
                assert place == (visit[before] - front.starts[t - 1] if before in visit else -1)
    for step, tables in ((-1, front.predecessors), (1, front.successors)):
        for d, table in enumerate(tables):
            neighbours = [(*p[:d], p[d] + step, *p[d + 1 :]) for p in visited]
            assert table.tolist() == [visit.get(neighbour, -1) for neighbour in neighbours]


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


@pytest.mark.parametrize("bad", [None, 0, "both", [], [1, 1], [(1,)], [(1, 0)], [(1, 1), (1, 1)]])
def test_other_directions_are_refused(bad: object) -> None:
    with pytest.raises(InputError, match="directions must be"):
        resolve_directions(bad, 2)  # type: ignore[arg-type]


def test_a_grid_without_positions_or_of_2_to_the_31_is_refused() -> None:
    check_positions((2**31 - 1,))
    for grid in ((), (0,), (3, -1), (65536, 32768)):
        with pytest.raises(InputError):
            wavefronts(grid)
    assert wavefronts(np.array([2, 3], np.int8)).grid == (2, 3)
