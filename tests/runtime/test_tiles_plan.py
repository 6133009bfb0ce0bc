"""Tiles give what the whole grid gives, with a small recurrence in NumPy in place of graphs."""

from __future__ import annotations

import os
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers.tiles import FakeNetwork

from mdlstm_tk.errors import InputError, MDLSTMError
from mdlstm_tk.runtime.tiles.local import State, on_threads, run_steps
from mdlstm_tk.runtime.tiles.plan import Plan, Tiling, run_order, tile_extents
from mdlstm_tk.runtime.tiles.sources import GridSource
from mdlstm_tk.runtime.tiles.store import BlockFolder, Blocks
from mdlstm_tk.runtime.tiles.work import Work, make_plan, output_extents

TILE = (4, 4)


def prepared(
    network: FakeNetwork,
    x: Any,
    tile: tuple[int, ...],
    blocks: Blocks,
    batch_size: int = 2,
    kind: type = Work,
) -> tuple[Any, Any]:
    """A run of a network in tiles, and the array that it fills."""
    archive, grid = network.archive, x.shape[:-1]
    y = np.full((*output_extents(archive, grid), archive.metadata.outputs), np.nan, np.float32)
    plan = make_plan(archive, grid, tile, batch_size)
    source = GridSource(x, archive.metadata, "x")
    return kind(archive, network, plan, blocks, source, y), y


def run(work: Work, threads: int = 1, state: State | None = None) -> None:
    with on_threads(work, threads) as run_groups:
        run_steps(work, run_groups, state=state)


def random_input(network: FakeNetwork, *grid: int) -> Any:
    return (
        np.random.default_rng(0).normal(size=(*grid, network.archive.metadata.channels)).astype(np.float32)
    )


@pytest.mark.parametrize("seed", range(24))
def test_tiles_equal_the_whole_grid(seed: int, tmp_path: Path) -> None:
    """And no block is left, but for the sums of networks that average over the grid."""
    rng = np.random.default_rng(seed)
    ndim = seed % 3 + 1
    pool = [(), (0,), tuple(range(ndim))][seed // 3 % 3] if ndim > 1 or seed % 2 else ()
    network = FakeNetwork(seed, ndim, pool=pool)
    x = random_input(network, *rng.integers(1, (40, 14, 7)[ndim - 1], size=ndim).tolist())
    tile = tuple(map(int, rng.integers(1, 7, size=ndim)))
    in_memory: dict[Any, Any] = {}
    blocks: Blocks = in_memory if seed % 2 else BlockFolder(tmp_path)
    work, y = prepared(network, x, tile, blocks, int(rng.integers(1, 5)))
    run(work)
    expected = network.whole(x)
    np.testing.assert_allclose(y, expected, rtol=1e-4, atol=1e-4 * abs(expected).max(), strict=True)
    left = len(in_memory) + len(list(tmp_path.iterdir()))
    last = len(network.archive.stages[-1].sweeps) * np.prod(work.plan.tiling.counts)
    assert left == (last if pool else 0)


def test_threads_change_no_byte(tmp_path: Path) -> None:
    network = FakeNetwork(1, 2, stages=2)
    x = random_input(network, 19, 23)
    results = []
    for threads in (1, 3):
        work, y = prepared(network, x, TILE, {})
        run(work, threads)
        results.append(y)
    np.testing.assert_array_equal(*results)


class StopError(Exception):
    """Stands for a kill."""


class Failing(Work):
    """Stops after each seventh group, which is done then, but not noted."""

    calls = 0

    def run(self, *arguments: Any) -> Any:
        leaving = super().run(*arguments)
        Failing.calls += 1
        if Failing.calls % 7 == 0:
            raise StopError
        return leaving


@pytest.mark.parametrize("pool", [(), (0,)])
def test_an_interrupted_run_goes_on_to_the_same_bytes(pool: tuple[int, ...], tmp_path: Path) -> None:
    """Stopped within steps: what has run in part runs again."""
    network = FakeNetwork(3, 2, pool=pool, stages=2)
    x = random_input(network, 11, 9)
    work, expected = prepared(network, x, TILE, {})
    run(work)
    blocks = BlockFolder(tmp_path)
    work, y = prepared(network, x, TILE, blocks, kind=Failing)
    attempts = 0
    while True:
        attempts += 1
        try:
            run(work, state=State(tmp_path, {"tile": [4, 4]}))
            break
        except StopError:
            continue
    assert attempts > 3
    np.testing.assert_array_equal(y, expected, strict=True)
    with pytest.raises(InputError, match=r"another tile \(\[4, 4\], now \[5, 5\]\)"):
        State(tmp_path, {"tile": [5, 5]})


def test_steps_respect_what_tiles_need() -> None:
    """Predecessors, and the sweep before on the same tile, are done in earlier steps; each tile once."""
    directions = [(1, 1, 1), (-1, 1, 1), (1, -1, -1), (-1, -1, -1)]
    tiling = Tiling((9, 5, 7), (2, 2, 3), [(1, 1, 1), (1, 1, 1)])
    plan = Plan(tiling, tuple((s, directions[k]) for s in (0, 1) for k in run_order(directions)), 2)
    step_of: dict[tuple[int, tuple[int, ...]], int] = {}
    for step in range(plan.step_count):
        for group in plan.groups(step):
            assert 1 <= len(group.tiles) <= 2
            assert len({tiling.shape(0, tile) for tile in group.tiles}) == 1
            for tile in group.tiles:
                assert step_of.setdefault((group.sweep, tile), step) == step
    assert len(step_of) == plan.tile_count
    for (sweep, tile), step in step_of.items():
        assert sweep == 0 or step_of[sweep - 1, tile] < step
        for axis in range(3):
            successor = plan.successor(sweep, tile, axis)
            assert successor is None or step_of[sweep, successor] > step


def test_sums_take_little_more_than_one_for_each_tile() -> None:
    """Blocks that have been read are removed before the next step."""
    network = FakeNetwork(5, 2, stages=1)
    stage = network.archive.stages[0]
    assert stage.added and len(stage.sweeps) > 1
    sizes: list[int] = []

    class Counted(dict[Any, Any]):
        def __setitem__(self, key: Any, block: Any) -> None:
            super().__setitem__(key, block)
            sizes.append(len(self))

    work, _ = prepared(network, random_input(network, 80, 80), TILE, Counted())
    run(work)
    counts = work.plan.tiling.counts
    assert max(sizes) <= np.prod(counts) + 2 * len(stage.sweeps) * max(counts)


def test_sweeps_overlap_where_directions_turn_one_axis() -> None:
    directions = list(product((1, -1), repeat=2))
    order = run_order(directions)
    assert [directions[k] for k in order] == [(1, 1), (1, -1), (-1, -1), (-1, 1)]
    plan = Plan(Tiling((80, 80), (10, 10), [(1, 1)]), tuple((0, directions[k]) for k in order), 4)
    assert plan.step_count == 3 * 8 + 15


def test_tiles_are_multiples_of_the_windows() -> None:
    tiling = Tiling((100, 9), (30, 1), [(4, 2), (2, 1)])
    assert tiling.tile_extents == [(24, 2), (6, 1), (3, 1)]
    assert tiling.extents == [(100, 9), (25, 5), (13, 5)]
    assert tiling.counts == (5, 5)
    assert Tiling((5, 5), (512, 512), [(4, 4)]).tile_extents[0] == (8, 8)


@pytest.mark.parametrize("tile", [0, -1, (4,), (4, 0), 2.5])
def test_invalid_tiles_are_refused(tile: Any) -> None:
    with pytest.raises(InputError, match="tile must be"):
        tile_extents(tile, 2)


def test_graphs_that_do_not_fit_are_named() -> None:
    network = FakeNetwork(1, 2)
    graph = next(iter(network.graphs.values()))
    whole = graph.run
    graph.run = lambda feeds: whole(feeds) | {"h1_n": np.zeros((1, 2), np.float32)}  # type: ignore[method-assign]
    work, _ = prepared(network, random_input(network, 9, 9), TILE, {})
    with pytest.raises(MDLSTMError, match=r"'h1_n', expected .*do not fit together"):
        run(work)


def test_a_full_scratch_disk_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any) -> int:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", full)
    network = FakeNetwork(1, 2, stages=2)
    work, _ = prepared(network, random_input(network, 9, 9), TILE, BlockFolder(tmp_path))
    with pytest.raises(MDLSTMError, match=r"No space left on device; .*output=\.\.\."):
        run(work)
