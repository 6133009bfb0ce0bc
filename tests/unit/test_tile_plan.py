"""Tiles give what the whole grid gives, with a small recurrence in NumPy in place of graphs."""

from __future__ import annotations

from itertools import product
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import pytest
from helpers.tiles import FakeNetwork

from mdlstm_tk.errors import InputError, MDLSTMError
from mdlstm_tk.runtime.tiles.local import State, run_steps
from mdlstm_tk.runtime.tiles.plan import Plan, Tiling, run_order, tile_extents
from mdlstm_tk.runtime.tiles.store import Store
from mdlstm_tk.runtime.tiles.work import Work, make_plan, make_store, ordered_sweeps, output_extents


class Grid:
    """A source and an output in memory."""

    def __init__(self, values: Any) -> None:
        self.values, self.grid = values, values.shape[:-1]

    def read(self, region: tuple[slice, ...]) -> Any:
        return self.values[region]

    def write(self, region: tuple[slice, ...], block: Any) -> None:
        self.values[region] = block


def tiled(
    network: FakeNetwork, x: Any, tile: tuple[int, ...], folder: Path, batch_size: int = 2, **options: Any
) -> Any:
    archive = network.archive
    plan = make_plan(archive, x.shape[:-1], tile, batch_size)
    keep = options.pop("keep", False)
    store = make_store(archive, plan, folder, keep=keep)
    graphs = [network.graphs[archive.stages[s].sweeps[k].file] for s, k in ordered_sweeps(archive)]
    y = Grid(
        np.full((*output_extents(archive, x.shape[:-1]), archive.metadata.outputs), np.nan, np.float32)
    )
    work = Work(archive, graphs, network.head, plan, store, Grid(x), y)
    run_steps(work, plan, store, **options)
    work.finish()
    store.close()
    return y.values


@pytest.mark.parametrize("seed", range(24))
def test_tiles_equal_the_whole_grid(seed: int, tmp_path: Path) -> None:
    rng = np.random.default_rng(seed)
    ndim = seed % 3 + 1
    pool = [(), (0,), tuple(range(ndim))][seed // 3 % 3] if ndim > 1 or seed % 2 else ()
    network = FakeNetwork(seed, ndim, pool=pool)
    grid = tuple(map(int, rng.integers(1, (40, 14, 7)[ndim - 1], size=ndim)))
    x = rng.normal(size=(*grid, network.archive.metadata.channels)).astype(np.float32)
    tile = tuple(map(int, rng.integers(1, 7, size=ndim)))
    y = tiled(network, x, tile, tmp_path, batch_size=int(rng.integers(1, 5)), keep=bool(seed % 2))
    expected = network.whole(x)
    np.testing.assert_allclose(y, expected, rtol=1e-4, atol=1e-4 * abs(expected).max(), strict=True)


def test_threads_change_no_byte_and_groups_may_run_twice(tmp_path: Path) -> None:
    network = FakeNetwork(1, 2, stages=2)
    x = np.random.default_rng(0).normal(size=(19, 23, network.archive.metadata.channels)).astype(np.float32)
    results = []
    for k, threads in enumerate((1, 3)):
        (tmp_path / str(k)).mkdir()
        results.append(tiled(network, x, (4, 4), tmp_path / str(k), threads=threads))
    np.testing.assert_array_equal(*results)


class StopError(Exception):
    """Stands for a kill."""


@pytest.mark.parametrize("pool", [(), (0,)])
def test_an_interrupted_run_goes_on_to_the_same_bytes(pool: tuple[int, ...], tmp_path: Path) -> None:
    """Stopped after every step, and within steps: what has run in part runs again."""
    network = FakeNetwork(3, 2, pool=pool, stages=2)
    x = np.random.default_rng(0).normal(size=(11, 9, network.archive.metadata.channels)).astype(np.float32)
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    whole.mkdir()
    parts.mkdir()
    expected = tiled(network, x, (4, 4), whole)
    archive = network.archive
    plan = make_plan(archive, (11, 9), (4, 4), 2)
    y = Grid(np.full((*output_extents(archive, (11, 9)), 2), np.nan, np.float32))
    state = State(parts, {"tile": [4, 4]})
    state.begin()
    calls = 0

    class Failing(Work):
        def run(self, *arguments: Any) -> Any:
            nonlocal calls
            calls += 1
            left = super().run(*arguments)
            if calls % 7 == 0:  # the group is done, but not noted
                raise StopError
            return left

    attempts = 0
    while True:
        store = make_store(archive, plan, parts)
        graphs = [network.graphs[archive.stages[s].sweeps[k].file] for s, k in ordered_sweeps(archive)]
        work = Failing(archive, graphs, network.head, plan, store, Grid(x), y)
        attempts += 1
        try:
            run_steps(work, plan, store, state=state, resume=True)
            work.finish()
            break
        except StopError:
            continue
        finally:
            store.close()
    assert attempts > 3
    np.testing.assert_array_equal(y.values, expected, strict=True)
    state.begin()  # the same run
    with pytest.raises(InputError, match=r"another tile \(\[4, 4\], now \[5, 5\]\)"):
        State(parts, {"tile": [5, 5]}).begin()


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
            before = plan.predecessor(sweep, tile, axis)
            assert before is None or step_of[sweep, before] < step


def test_places_of_sums_are_used_again() -> None:
    """All sums take little more than one for each tile, and no place holds two of them."""
    directions = [(1, 1), (1, -1), (-1, -1), (-1, 1)]
    plan = Plan(Tiling((200, 200), (10, 10), [(1, 1)]), tuple((0, d) for d in directions), 4)
    with TemporaryDirectory() as folder:
        store = Store(Path(folder), plan, [1], [True], range(4))
        for step in range(plan.step_count):
            store.begin(plan.groups(step))
            assert len(set(store._places.values())) == len(store._places)
            store.end(plan.groups(step))
        store.close()
    assert store._most[0] <= 400 + 2 * 20
    assert not store._places


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


def test_graphs_that_do_not_fit_are_named(tmp_path: Path) -> None:
    network = FakeNetwork(1, 2)
    graph = next(iter(network.graphs.values()))
    run = graph.run
    graph.run = lambda feeds: run(feeds) | {"h1_n": np.zeros((1, 2), np.float32)}  # type: ignore[method-assign]
    x = np.zeros((9, 9, network.archive.metadata.channels), np.float32)
    with pytest.raises(MDLSTMError, match=r"'h1_n', expected .*do not fit together"):
        tiled(network, x, (4, 4), tmp_path)


def test_a_full_scratch_disk_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import os

    def full(*_: Any) -> int:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "pwrite", full)
    network = FakeNetwork(1, 2, stages=2)
    with pytest.raises(MDLSTMError, match="No space left on device"):
        tiled(network, np.zeros((9, 9, network.archive.metadata.channels), np.float32), (4, 4), tmp_path)
