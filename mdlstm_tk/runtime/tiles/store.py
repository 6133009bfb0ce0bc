"""The faces and outputs that tiles leave for later ones: blocks of numbers in a folder."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from math import prod
from pathlib import Path

import numpy as np

from mdlstm_tk.errors import Argument, MDLSTMError
from mdlstm_tk.runtime.io.npy import Array, open_output, write_npy
from mdlstm_tk.runtime.tiles.archive import Archive
from mdlstm_tk.runtime.tiles.plan import Group, Plan, Tile

BlockKey = tuple[int, Tile] | tuple[int, Tile, int]
"""The sweep that has left a block, its tile, and of a face the axis along which it is left."""


class BlockFolder:
    """Blocks in a folder, a `.npy` file for each.

    Threads and processes may use it at the same time. A file that is written again is replaced, so that
    a concurrent reader gets all of it.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def __getitem__(self, key: BlockKey) -> Array:
        path = self._path(key)
        try:
            block: Array = np.load(path)
        except (OSError, ValueError, EOFError) as error:  # the machine went down before it was on the disk
            advice = "start over with ", Argument("force", True)
            raise MDLSTMError(f"cannot read {path} ({error}); ", *advice) from None
        return block

    def __setitem__(self, key: BlockKey, block: Array) -> None:
        with open_output(self._path(key)) as file:
            write_npy(file, block)

    def __delitem__(self, key: BlockKey) -> None:
        self._path(key).unlink(missing_ok=True)

    def _path(self, key: BlockKey) -> Path:
        sweep, tile, *axis = key
        name = ".".join(["-".join(map(str, (sweep, *tile))), *map(str, axis)])
        return self._folder / f"{name}.npy"


class Store:
    """The blocks that tiles leave for later ones: their faces, and the outputs of all stages.

    Where the parts of the directions are added, each sweep reads the sums of the one before and leaves its
    own, so that a group that runs a second time changes nothing. The last sweep of the last stage leaves
    none: with its parts the output is complete.
    """

    def __init__(self, archive: Archive, plan: Plan, blocks: BlockFolder) -> None:
        self._stages, self._pool, self._plan, self._blocks = archive.stages, archive.pool, plan, blocks
        self._sweeps = [
            [k for k, sweep in enumerate(plan.sweeps) if sweep.stage == s]
            for s in range(len(archive.stages))
        ]

    def face(self, sweep: int, tile: Tile, axis: int) -> Array | None:
        """The face by which a sweep enters a tile along an axis; None at the border."""
        before = self._plan.neighbour(sweep, tile, axis, -1)
        return None if before is None else self._blocks[sweep, before, axis]

    def leave(self, sweep: int, tile: Tile, axis: int, face: Array) -> None:
        """Store the face that a sweep leaves a tile by, unless it is at the border."""
        if self._plan.neighbour(sweep, tile, axis, 1) is not None:
            self._blocks[sweep, tile, axis] = face

    def complete(self, sweep: int, tile: Tile, part: Array) -> Array | None:
        """Take the part (*extents, F) that a sweep adds to the output of its stage for a tile.

        Returns the output of the last stage (*extents, features) if it is complete with this part, else
        None."""
        stage = self._plan.sweeps[sweep].stage
        sweeps = self._sweeps[stage]
        is_last = stage == len(self._stages) - 1
        if is_last and self._pool:
            self._blocks[sweep, tile] = part.sum(axis=self._pool, dtype=np.float64, keepdims=True)
            return None
        if self._stages[stage].added and sweep != sweeps[0]:
            part = self._blocks[sweep - 1, tile] + part
        if not is_last or sweep != sweeps[-1]:
            self._blocks[sweep, tile] = part
            return None
        if self._stages[stage].added:
            return part
        return self._joined({k: self._blocks[k, tile] for k in sweeps[:-1]} | {sweep: part})

    def output(self, stage: int, tile: Tile) -> Array:
        """The stored output of a stage that is not the last, for one tile: (*extents, features)."""
        return self._joined({k: self._blocks[k, tile] for k in self._holders(stage)})

    def forget(self, group: Group) -> None:
        """Remove the blocks that a group was the last to read, once it need not run again."""
        for tile in group.tiles:
            for sweep in self._last_reads(group.sweep):
                del self._blocks[sweep, tile]
            for axis in range(len(tile)):
                if before := self._plan.neighbour(group.sweep, tile, axis, -1):
                    del self._blocks[group.sweep, before, axis]

    def pooled(self) -> Array:
        """The averages of the last stage over the pooled axes, in which they have the extent 1."""
        plan, level, pool = self._plan, len(self._stages), self._pool
        extents = plan.extents[level]
        features = self._stages[-1].features
        shape = tuple(1 if d in pool else extent for d, extent in enumerate(extents))
        totals = {}
        for sweep in self._sweeps[-1]:
            totals[sweep] = np.zeros((*shape, features))
            for tile in plan.tiles():
                region = plan.region(level, tile)
                target = tuple(slice(0, 1) if d in pool else part for d, part in enumerate(region))
                totals[sweep][target] += self._blocks[sweep, tile]
        total = sum(totals.values()) if self._stages[-1].added else self._joined(totals)
        return np.asarray(total / prod(extents[d] for d in pool), np.float32)

    def _holders(self, stage: int) -> list[int]:
        """The sweeps whose blocks make the output of a stage: the last, whose blocks are sums, or all."""
        return self._sweeps[stage][-1:] if self._stages[stage].added else self._sweeps[stage]

    def _last_reads(self, sweep: int) -> Iterator[int]:
        """The sweeps whose blocks no other sweep reads after this one."""
        stage = self._plan.sweeps[sweep].stage
        sweeps = self._sweeps[stage]
        is_last = stage == len(self._stages) - 1
        if self._stages[stage].added and sweep != sweeps[0] and not (is_last and self._pool):
            yield sweep - 1
        if sweep == sweeps[-1]:
            if is_last and not self._pool and not self._stages[stage].added:
                yield from sweeps[:-1]
            if stage > 0:
                yield from self._holders(stage - 1)

    def _joined(self, parts: Mapping[int, Array]) -> Array:
        """The parts of sweeps, in the order of their features."""
        order = sorted(parts, key=lambda k: self._plan.sweeps[k].position)
        return np.concatenate([parts[k] for k in order], axis=-1)
