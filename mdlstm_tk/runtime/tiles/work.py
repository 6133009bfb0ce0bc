"""`Work`: what is done with one group of tiles, wherever it runs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Protocol

import numpy as np

from mdlstm_tk.errors import MDLSTMError
from mdlstm_tk.runtime.io.npy import Array
from mdlstm_tk.runtime.tiles.archive import Archive
from mdlstm_tk.runtime.tiles.plan import Group, Plan, Region, Tile, Tiling, run_order
from mdlstm_tk.runtime.tiles.store import Store

FaceKey = tuple[int, Tile, int]  # the sweep, the tile that is entered, and the axis along which
Face = Array  # (1 + S, *extents of the other axes, n), all states in the order of `Stage.states`


class Graph(Protocol):
    """A loaded graph; see `mdlstm_tk.runtime.runner.Runner`."""

    def run(self, feeds: Mapping[str, Array]) -> dict[str, Array]: ...


class Source(Protocol):
    """A grid that is read by region.

    Attributes:
        grid: its extents.
    """

    @property
    def grid(self) -> tuple[int, ...]: ...

    def read(self, region: Region) -> Array:
        """The values in a region as the network takes them: float32, finite, (*extents, C)."""


class Output(Protocol):
    """A grid that is written by region."""

    def write(self, region: Region, block: Array) -> None:
        """Write y (*extents, outputs) for a region; the same one may be written twice."""


def make_plan(archive: Archive, grid: Sequence[int], tile: Sequence[int], batch_size: int) -> Plan:
    """The plan for a network and a grid."""
    tiling = Tiling(grid, tile, [stage.window for stage in archive.stages])
    sweeps = [(s, archive.stages[s].sweeps[k].direction) for s, k in ordered_sweeps(archive)]
    return Plan(tiling, tuple(sweeps), batch_size)


def ordered_sweeps(archive: Archive) -> list[tuple[int, int]]:
    """The sweeps in the order in which they run: the stage, and the index in the stage."""
    return [
        (s, k)
        for s, stage in enumerate(archive.stages)
        for k in run_order([sweep.direction for sweep in stage.sweeps])
    ]


def make_store(archive: Archive, plan: Plan, folder: Path, *, keep: bool = False) -> Store:
    """The store for a plan that `make_plan` made."""
    stages = archive.stages
    return Store(
        folder,
        plan,
        [stage.features for stage in stages],
        [stage.added for stage in stages],
        [k for _, k in ordered_sweeps(archive)],
        archive.pool,
        keep=keep,
    )


def output_extents(archive: Archive, grid: Sequence[int]) -> tuple[int, ...]:
    """The extents of y without pooled axes: of its grid, or of what is left of it."""
    window = archive.metadata.window or archive.total_window
    if archive.pool:
        window = archive.total_window
    extents = zip(grid, window, strict=True)
    return tuple(-(-e // w) for d, (e, w) in enumerate(extents) if d not in archive.pool)


def tile_of_output(archive: Archive, plan: Plan) -> tuple[int, ...]:
    """The extents of the part of y that one tile gives, if y has the grid of the last stage."""
    sizes = zip(plan.tiling.tile_extents[-1], archive.upsample, strict=True)
    whole = output_extents(archive, plan.tiling.extents[0])
    return tuple(min(size * up, extent) for (size, up), extent in zip(sizes, whole, strict=True))


class Work:
    """Runs groups of tiles. Calls from several threads are safe for different groups.

    Args:
        archive: describes the network.
        graphs: of the sweeps, in the order of `ordered_sweeps`.
        head: the graph of the head, or None.
        plan: what `make_plan` returned.
        store: what `make_store` returned.
        source: x.
        output: y.
    """

    def __init__(
        self,
        archive: Archive,
        graphs: Sequence[Graph],
        head: Graph | None,
        plan: Plan,
        store: Store,
        source: Source,
        output: Output,
    ) -> None:
        self._archive, self._graphs, self._head = archive, graphs, head
        self._plan, self._store, self._source, self._output = plan, store, source, output

    def run(self, group: Group, faces: Mapping[FaceKey, Face]) -> dict[FaceKey, Face]:
        """Run one group.

        Args:
            group: of the plan.
            faces: those by which its tiles are entered, among others; where one is missing, the tile lies
                at the border.

        Returns:
            The faces by which the next tiles are entered.

        Raises:
            MDLSTMError: ONNX Runtime fails, a graph does not do what the archive says, or a file cannot be
                written.
            InputError: the source cannot be read.
        """
        plan, tiling = self._plan, self._plan.tiling
        stage = plan.sweeps[group.sweep][0]
        states = self._archive.stages[stage].states
        if stage == 0:
            tiles = [self._source.read(tiling.region(0, tile)) for tile in group.tiles]
        else:
            tiles = [self._store.output(stage - 1, tile) for tile in group.tiles]
        shape = tiling.shape(stage + 1, group.tiles[0])
        feeds = {"x": np.stack(tiles)}
        for axis in range(len(shape)):
            zeros = self._zeros(stage, shape, axis)
            entering = [faces.get((group.sweep, tile, axis), zeros) for tile in group.tiles]
            stacked = np.stack(entering, axis=1)  # (1 + S, N, *extents of the other axes, n)
            feeds |= {f"{state}{axis}": face for state, face in zip(states, stacked, strict=True)}
        outputs = self._graphs[group.sweep].run(feeds)
        parts = self._checked(outputs, "part", (*shape, self._archive.stages[stage].features), group)
        left = self._faces_left(group, outputs, shape)
        done = []
        for tile, part in zip(group.tiles, parts, strict=True):
            stored = self._store.complete(group.sweep, tile, part)
            if stored is not None:
                done.append((tile, stored))
        if done:
            self._write([tile for tile, _ in done], np.stack([y for _, y in done]))
        return left

    def finish(self) -> None:
        """Write the result of a network that averages over the grid, once all groups have run."""
        if not self._archive.pool:
            return
        pool = self._archive.pool
        stored = self._store.pooled()[None]
        y = self._headed(stored, stored.shape[1:-1])[0]
        extents = [extent for d, extent in enumerate(y.shape[:-1]) if d not in pool]
        self._output.write(tuple(slice(0, extent) for extent in extents), y.squeeze(pool))

    def _write(self, tiles: list[Tile], stored: Array) -> None:
        """Write y for tiles that the last stage has finished."""
        archive, tiling = self._archive, self._plan.tiling
        whole = output_extents(archive, tiling.extents[0])
        upsampled = zip(stored.shape[1:-1], archive.upsample, strict=True)
        y = self._headed(stored, tuple(extent * up for extent, up in upsampled))
        for tile, block in zip(tiles, y, strict=True):
            region = tuple(
                slice(part.start * up, min(part.stop * up, extent))
                for part, up, extent in zip(
                    tiling.region(len(archive.stages), tile), archive.upsample, whole, strict=True
                )
            )
            self._output.write(region, block[tuple(slice(part.stop - part.start) for part in region)])

    def _headed(self, stored: Array, extents: tuple[int, ...]) -> Array:
        """y (N, *extents, outputs) for the output of the last stage (N, …, F)."""
        y = stored if self._head is None else self._head.run({"x": stored})["y"]
        if y.shape != (len(stored), *extents, self._archive.metadata.outputs):
            raise MDLSTMError(
                f"the head returned y of shape {y.shape} for x of shape {stored.shape}, which contradicts "
                "the archive; export the model again"
            )
        return y

    def _faces_left(
        self, group: Group, outputs: Mapping[str, Array], shape: tuple[int, ...]
    ) -> dict[FaceKey, Face]:
        left: dict[FaceKey, Face] = {}
        stage = self._archive.stages[self._plan.sweeps[group.sweep][0]]
        for axis in range(len(shape)):
            face_shape = (*shape[:axis], *shape[axis + 1 :], stage.units)
            faces = [
                self._checked(outputs, f"{state}{axis}_n", face_shape, group) for state in stage.states
            ]
            for k, tile in enumerate(group.tiles):
                following = self._plan.predecessor(group.sweep, tile, axis, 1)
                if following is not None:
                    left[group.sweep, following, axis] = np.stack([face[k] for face in faces])
        return left

    def _checked(
        self, outputs: Mapping[str, Array], name: str, shape: tuple[int, ...], group: Group
    ) -> Array:
        y = outputs.get(name)
        if y is None or y.dtype != np.float32 or y.shape != (len(group.tiles), *shape):
            found = "nothing" if y is None else f"{y.dtype} of shape {y.shape}"
            raise MDLSTMError(
                f"sweep {group.sweep} returned {found} for '{name}', expected float32 of shape "
                f"{(len(group.tiles), *shape)}; the graphs of the archive do not fit together, so export "
                "the model again"
            )
        return y

    def _zeros(self, stage: int, shape: tuple[int, ...], axis: int) -> Face:
        of = self._archive.stages[stage]
        return np.zeros((len(of.states), *shape[:axis], *shape[axis + 1 :], of.units), np.float32)
