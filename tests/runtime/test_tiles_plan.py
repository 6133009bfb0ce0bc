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
from mdlstm_tk.runtime.tiles.plan import Group, Plan, Sweep, tile_extents
from mdlstm_tk.runtime.tiles.sources import GridSource
from mdlstm_tk.runtime.tiles.store import BlockFolder
from mdlstm_tk.runtime.tiles.work import Work


def random_input(session: TiledSession, *grid: int) -> Any:
    return np.random.default_rng(0).random((*grid, session.metadata.channels), np.float32)


def prepared(session: TiledSession, x: Any, blocks: BlockFolder, kind: type = Work) -> tuple[Any, Any]:
    """A run of a network in tiles of 4×4, and the array that it fills."""
    y = np.full(session.archive.output_shape(x.shape[:-1]), np.nan, np.float32)
    plan = session.plan(x.shape[:-1], 4, batch_size=2)
    source = GridSource(x, session.metadata, "x")
    return kind(session.archive, session.graphs, plan, blocks, source, y), y


def run(work: Work, state: State | None = None) -> None:
    with on_threads(work, 1) as run_groups:
        run_steps(work, run_groups, state=state)


class Counted(BlockFolder):
    """Counts the files after each that is written: outputs, and faces."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.folder, self.counts = folder, list[tuple[int, int]]()

    def __setitem__(self, key: Any, block: Any) -> None:
        super().__setitem__(key, block)
        names = [path.stem for path in self.folder.iterdir()]
        faces = sum("." in name for name in names)
        self.counts.append((len(names) - faces, faces))


@pytest.mark.parametrize("make", [downward, segmenter, classifier])
def test_blocks_that_have_been_read_are_removed(make: Any, tmp_path: Path) -> None:
    """Of added parts there is little more than one for each tile; at the end, the sums of a mean alone."""
    model: TiledModel = make()
    with TiledSession(model.path, "cpu") as session:
        x = random_input(session, 43, 38)
        blocks = Counted(tmp_path)
        work, y = prepared(session, x, blocks)
        run(work)
        stage, counts = session.archive.stages[-1], work.plan.counts
    np.testing.assert_allclose(y, model.whole(x), rtol=0, atol=1e-5, strict=True)
    sums = len(stage.sweeps) * np.prod(counts)
    assert len(list(tmp_path.iterdir())) == (sums if make is classifier else 0)
    outputs, faces = np.max(blocks.counts, axis=0)
    assert faces <= 4 * len(session.archive.sweeps) * max(counts)
    if make is segmenter:
        assert stage.added and len(stage.sweeps) > 1
        assert outputs <= np.prod(counts) + 2 * len(stage.sweeps) * max(counts)


class StopError(Exception):
    """Stands for a kill."""


class Failing(Work):
    """Stops after one group of twelve, which is done then, but not noted."""

    rng = np.random.default_rng(0)

    def run(self, group: Group) -> None:
        super().run(group)
        if self.rng.random() < 1 / 12:
            raise StopError


@pytest.mark.parametrize("make", [downward, classifier])
def test_an_interrupted_run_goes_on_to_the_same_bytes(make: Any, tmp_path: Path) -> None:
    """Stopped within steps: what has run in part runs again."""
    with TiledSession(make().path, "cpu") as session:
        x = random_input(session, 21, 19)
        (tmp_path / "whole").mkdir()
        work, expected = prepared(session, x, BlockFolder(tmp_path / "whole"))
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
    sweeps = [Sweep("", direction, stage) for stage in (0, 1) for direction in directions]
    sweeps.sort(key=lambda sweep: (sweep.stage, sweep.rank))
    plan = Plan((9, 5, 7), (2, 2, 3), [(1, 1, 1), (1, 1, 1)], sweeps, 2)
    step_of: dict[tuple[int, tuple[int, ...]], int] = {}
    for step in range(plan.step_count):
        for group in plan.groups(step):
            assert 1 <= len(group.tiles) <= 2
            assert len({plan.shape(0, tile) for tile in group.tiles}) == 1
            for tile in group.tiles:
                assert step_of.setdefault((group.sweep, tile), step) == step
    assert len(step_of) == plan.tile_count
    for (sweep, tile), step in step_of.items():
        assert sweep == 0 or step_of[sweep - 1, tile] < step
        for axis in range(3):
            successor = plan.neighbour(sweep, tile, axis, 1)
            assert successor is None or step_of[sweep, successor] > step


def test_sweeps_overlap_where_directions_turn_one_axis() -> None:
    sweeps = [Sweep("", direction) for direction in product((1, -1), repeat=2)]
    sweeps.sort(key=lambda sweep: sweep.rank)
    assert [sweep.direction for sweep in sweeps] == [(1, 1), (1, -1), (-1, -1), (-1, 1)]
    assert Plan((80, 80), (10, 10), [(1, 1)], sweeps, 4).step_count == 3 * 8 + 15


def test_tiles_are_multiples_of_the_windows() -> None:
    plan = Plan((100, 9), (30, 1), [(4, 2), (2, 1)], [], 1)
    assert plan.tile_extents == [(24, 2), (6, 1), (3, 1)]
    assert plan.extents == [(100, 9), (25, 5), (13, 5)]
    assert plan.counts == (5, 5)
    assert Plan((5, 5), (512, 512), [(4, 4)], [], 1).tile_extents[0] == (8, 8)


def test_the_extents_of_a_tile_are_integers() -> None:
    for tile in (0, -1, (4,), (4, 0), 2.5):
        with pytest.raises(InputError, match="tile must be"):
            tile_extents(tile, 2)
    assert tile_extents(np.int64(8), 2) == (8, 8)
    assert tile_extents([np.int32(4), 6], 2) == (4, 6)


def test_a_full_scratch_disk_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any) -> int:
        raise OSError(28, "No space left on device")

    with TiledSession(downward().path, "cpu") as session:
        monkeypatch.setattr(os, "replace", full)
        with pytest.raises(MDLSTMError, match="No space left on device; choose another path"):
            session(np.zeros((9, 9)), tile=4)
