"""The steps in which tiles are swept: their order, what they leave, and going on after a stop."""

from __future__ import annotations

import os
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers.tiled_models import TiledModel, classifier, downward, segmenter

from mdlstm_tk.errors import InputError, MDLSTMError
from mdlstm_tk.runtime import TiledSession
from mdlstm_tk.runtime.tiles.local import State, on_threads, run_steps
from mdlstm_tk.runtime.tiles.plan import Plan, Tiling, run_order, tile_extents
from mdlstm_tk.runtime.tiles.sources import GridSource
from mdlstm_tk.runtime.tiles.store import BlockFolder, Blocks
from mdlstm_tk.runtime.tiles.work import Work


def random_input(session: TiledSession, *grid: int) -> Any:
    return np.random.default_rng(0).random((*grid, session.metadata.channels), np.float32)


def prepared(session: TiledSession, x: Any, blocks: Blocks, kind: type = Work) -> tuple[Any, Any]:
    """A run of a network in tiles of 4×4, and the array that it fills."""
    y = np.full(session.output_shape(x.shape[:-1]), np.nan, np.float32)
    plan = session.plan(x.shape[:-1], 4, batch_size=2)
    source = GridSource(x, session.metadata, "x")
    return kind(session.archive, session.graphs, plan, blocks, source, y), y


def run(work: Work, state: State | None = None) -> None:
    with on_threads(work, 1) as run_groups:
        run_steps(work, run_groups, state=state)


@pytest.mark.parametrize("in_memory", [True, False])
@pytest.mark.parametrize("make", [downward, segmenter, classifier])
def test_no_block_is_left_but_the_sums_of_a_mean(make: Any, in_memory: bool, tmp_path: Path) -> None:
    model: TiledModel = make()
    stored: dict[Any, Any] = {}
    with TiledSession(model.path, "cpu") as session:
        x = random_input(session, 19, 14)
        work, y = prepared(session, x, stored if in_memory else BlockFolder(tmp_path))
        run(work)
        sums = len(session.archive.stages[-1].sweeps) * np.prod(work.plan.tiling.counts)
    np.testing.assert_allclose(y, model.whole(x), rtol=0, atol=1e-5, strict=True)
    assert len(stored) + len(list(tmp_path.iterdir())) == (sums if make is classifier else 0)


class StopError(Exception):
    """Stands for a kill."""


class Failing(Work):
    """Stops after one group of twelve, which is done then, but not noted."""

    rng = np.random.default_rng(0)

    def run(self, *arguments: Any) -> Any:
        leaving = super().run(*arguments)
        if self.rng.random() < 1 / 12:
            raise StopError
        return leaving


@pytest.mark.parametrize("make", [downward, classifier])
def test_an_interrupted_run_goes_on_to_the_same_bytes(make: Any, tmp_path: Path) -> None:
    """Stopped within steps: what has run in part runs again."""
    with TiledSession(make().path, "cpu") as session:
        x = random_input(session, 21, 19)
        work, expected = prepared(session, x, {})
        run(work)
        work, y = prepared(session, x, BlockFolder(tmp_path), Failing)
        attempts = 0
        while True:
            attempts += 1
            try:
                run(work, State(tmp_path, {"tile": [4, 4]}))
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
    sizes: list[int] = []

    class Counted(dict[Any, Any]):
        def __setitem__(self, key: Any, block: Any) -> None:
            super().__setitem__(key, block)
            sizes.append(len(self))

    with TiledSession(segmenter().path, "cpu") as session:
        (stage,) = session.archive.stages
        assert stage.added and len(stage.sweeps) > 1
        work, _ = prepared(session, random_input(session, 80, 80), Counted())
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


def test_a_full_scratch_disk_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any) -> int:
        raise OSError(28, "No space left on device")

    with TiledSession(downward().path, "cpu") as session:
        monkeypatch.setattr(os, "replace", full)
        with pytest.raises(MDLSTMError, match="No space left on device; choose another path"):
            session(np.zeros((9, 9)), tile=4)


def test_extents_of_tiles_may_be_integers_of_numpy() -> None:
    assert tile_extents(np.int64(8), 2) == (8, 8)
    assert tile_extents([np.int32(4), 6], 2) == (4, 6)
