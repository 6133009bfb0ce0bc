"""What tiles leave for one another: blocks of numbers in files of a scratch folder.

Files are read and written with system calls rather than mapped: pages of a mapping count as resident
memory, and a full disk ends a process that writes to one (SIGBUS), where a system call returns an error.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator, Sequence
from math import prod
from pathlib import Path
from threading import Lock
from typing import Any

import numpy as np

from mdlstm_tk.errors import MDLSTMError
from mdlstm_tk.runtime.io.npy import Array
from mdlstm_tk.runtime.tiles.plan import Group, Plan, Tile

MAX_TRANSFER_BYTES = 2**30  # of one system call; Linux moves at most 2 GiB

_seeking = Lock()  # Windows reads and writes at the position of the file alone


class BlockFile:
    """A file with numbered places for the blocks of tiles.

    Threads and processes may use it at the same time for different places.

    Args:
        path: of the file, which is created if it is missing.
        block: largest shape of a block.
        dtype: of the numbers.
    """

    def __init__(self, path: Path, block: Sequence[int], dtype: type[np.generic] = np.float32) -> None:
        self._path, self._dtype = path, np.dtype(dtype)
        self._place_bytes = prod(block) * self._dtype.itemsize
        self._descriptor = os.open(path, os.O_RDWR | os.O_CREAT | getattr(os, "O_BINARY", 0), 0o600)

    def write(self, place: int, block: Array) -> None:
        """Write a block.

        Raises:
            MDLSTMError: the disk is full.
        """
        data = bytes_of(np.ascontiguousarray(block, self._dtype))
        try:
            write_at(self._descriptor, data, place * self._place_bytes)
        except OSError as error:
            raise scratch_error(self._path, error) from None

    def read(self, place: int, shape: Sequence[int]) -> Array:
        """Read a block.

        Raises:
            MDLSTMError: it was not written.
        """
        block = np.empty(tuple(shape), self._dtype)
        data = bytes_of(block)
        if read_at(self._descriptor, data, place * self._place_bytes) < len(data):
            raise MDLSTMError(f"{self._path} ends early; run again without --resume")
        return block

    def close(self) -> None:
        """Close the file."""
        os.close(self._descriptor)

    def remove(self) -> None:
        """Close the file and remove it."""
        self.close()
        self._path.unlink(missing_ok=True)


class Store:
    """The stored outputs of all stages.

    Where the parts of the directions are added, each sweep reads the sums of the one before and writes its
    own elsewhere, so that a group that runs a second time changes nothing. What a step has read is free for
    the steps that follow, so that all sums together take little more than one of them for each tile. Which
    place a tile gets depends on the plan alone.

    Args:
        folder: of the files.
        plan: of the run.
        features: F of each stage: of the sum, or of the part of one sweep.
        added: whether the parts of a stage are added, or concatenated in the order of `positions`.
        positions: of each sweep, in the order in which they run, its place among the features.
        pool: axes averaged over after the last stage.
        keep: keep the sums of every sweep in a file of its own, so that any group may run again at any
            time. Otherwise `begin` and `end` must be called for each step.
    """

    def __init__(
        self,
        folder: Path,
        plan: Plan,
        features: Sequence[int],
        added: Sequence[bool],
        positions: Sequence[int],
        pool: Sequence[int] = (),
        *,
        keep: bool = False,
    ) -> None:
        self._folder, self._plan, self._features, self._added = folder, plan, features, added
        self._positions, self._pool, self._keep = positions, frozenset(pool), keep
        self._files: dict[str, BlockFile] = {}
        self._places: dict[tuple[int, Tile], int] = {}  # where the sums of a sweep lie
        self._free: list[list[int]] = [[] for _ in features]
        self._most = [0] * len(features)
        self._stages = [
            [k for k, (stage, _) in enumerate(plan.sweeps) if stage == s] for s in range(len(features))
        ]
        # a pooled last stage stores no grid, and the last sweep of another one stores nothing
        for stage, sweeps in enumerate(self._stages):
            is_last = stage == len(features) - 1
            for number, sweep in enumerate(sweeps):
                if not is_last or (number < len(sweeps) - 1 and not pool):
                    self._open(self._name(sweep), stage)
                if is_last and pool:
                    self._open(f"pool-{sweep}", stage)

    def begin(self, groups: Sequence[Group]) -> None:
        """Find places for what the groups of a step will write."""
        for sweep, tile in self._sharing(groups):
            stage = self._plan.sweeps[sweep][0]
            if stage == len(self._stages) - 1 and sweep == self._stages[stage][-1]:
                continue
            if not self._free[stage]:
                self._free[stage].append(self._most[stage])
                self._most[stage] += 1
            self._places[sweep, tile] = self._free[stage].pop()

    def end(self, groups: Sequence[Group]) -> None:
        """Free the places of what the groups of a step have read."""
        for sweep, tile in self._sharing(groups):
            stage = self._plan.sweeps[sweep][0]
            if sweep != self._stages[stage][0]:
                self._free[stage].append(self._places.pop((sweep - 1, tile)))

    def complete(self, sweep: int, tile: Tile, part: Array) -> Array | None:
        """Take what a sweep adds to the output of its stage.

        Args:
            sweep: its index.
            tile: the tile.
            part: (*extents, F).

        Returns:
            The output of the last stage (*extents, features) if it is complete with this part, else None.
        """
        stage = self._plan.sweeps[sweep][0]
        sweeps = self._stages[stage]
        is_last = stage == len(self._stages) - 1
        if is_last and self._pool:
            axes = tuple(sorted(self._pool))
            total = part.sum(axis=axes, dtype=np.float64, keepdims=True)
            self._files[f"pool-{sweep}"].write(self._index(tile), total)
            return None
        shape = part.shape
        if self._added[stage] and sweep != sweeps[0]:
            part = self._read(sweep - 1, tile, shape) + part
        if not is_last or sweep != sweeps[-1]:
            self._files[self._name(sweep)].write(self._place(sweep, tile), part)
            return None
        if self._added[stage]:
            return part
        parts = {k: self._read(k, tile, shape) for k in sweeps[:-1]} | {sweep: part}
        return self._in_order(parts)

    def output(self, stage: int, tile: Tile) -> Array:
        """The stored output of a stage that is not the last, for one tile: (*extents, features)."""
        shape = (*self._plan.tiling.shape(stage + 1, tile), self._features[stage])
        sweeps = self._stages[stage]
        if self._added[stage]:
            return self._read(sweeps[-1], tile, shape)
        return self._in_order({k: self._read(k, tile, shape) for k in sweeps})

    def pooled(self) -> Array:
        """The averages of the last stage over the pooled axes, in which they have the extent 1."""
        tiling, level = self._plan.tiling, len(self._stages)
        sweeps = self._stages[-1]
        extents = tiling.extents[level]
        features = self._features[-1]
        parts = {}
        for k in sweeps:
            total = np.zeros((*self._unpooled(extents), features))
            for tile in tiling.tiles():
                shape = (*self._unpooled(tiling.shape(level, tile)), features)
                region = tiling.region(level, tile)
                place = tuple(slice(0, 1) if d in self._pool else part for d, part in enumerate(region))
                total[place] += self._files[f"pool-{k}"].read(self._index(tile), shape)
            parts[k] = total
        stored = sum(parts.values()) if self._added[-1] else self._in_order(parts)
        return np.asarray(stored / prod(extents[d] for d in self._pool), np.float32)

    def forget(self, step: int) -> None:
        """Remove the files that no step from this one on reads."""
        for stage, sweeps in enumerate(self._stages[:-1]):
            if step >= self._plan.ends(self._stages[stage + 1][-1]) and not self._keep:
                for k in sweeps:
                    if file := self._files.pop(self._name(k), None):
                        file.remove()

    def close(self) -> None:
        """Close all files; whoever made their folder removes them with it."""
        for file in self._files.values():
            file.close()
        self._files.clear()

    def _in_order(self, parts: dict[int, Array]) -> Array:
        return np.concatenate([parts[k] for k in sorted(parts, key=self._positions.__getitem__)], axis=-1)

    def _name(self, sweep: int) -> str:
        """The file that a sweep writes."""
        stage = self._plan.sweeps[sweep][0]
        number = sweep - self._stages[stage][0]
        return f"stage-{stage}" if self._shares(stage) else f"stage-{stage}-{number}"

    def _shares(self, stage: int) -> bool:
        """Whether the sweeps of a stage write to one file, in places that are used again."""
        is_pooled = bool(self._pool) and stage == len(self._stages) - 1
        return self._added[stage] and not self._keep and not is_pooled

    def _sharing(self, groups: Sequence[Group]) -> Iterator[tuple[int, Tile]]:
        for sweep, tiles in groups:
            if self._shares(self._plan.sweeps[sweep][0]):
                yield from ((sweep, tile) for tile in tiles)

    def _place(self, sweep: int, tile: Tile) -> int:
        if self._shares(self._plan.sweeps[sweep][0]):
            return self._places[sweep, tile]
        return self._index(tile)

    def _index(self, tile: Tile) -> int:
        return int(np.ravel_multi_index(tile, self._plan.tiling.counts))

    def _read(self, sweep: int, tile: Tile, shape: Sequence[int]) -> Array:
        """What a sweep has written for a tile."""
        return self._files[self._name(sweep)].read(self._place(sweep, tile), shape)

    def _open(self, name: str, stage: int) -> None:
        if name not in self._files:
            block: tuple[int, ...] = self._plan.tiling.tile_extents[stage + 1]
            dtype: Any = np.float32
            if name.startswith("pool"):
                block, dtype = self._unpooled(block), np.float64
            self._files[name] = BlockFile(self._folder / name, (*block, self._features[stage]), dtype)

    def _unpooled(self, extents: Sequence[int]) -> tuple[int, ...]:
        return tuple(1 if d in self._pool else extent for d, extent in enumerate(extents))


def bytes_of(array: Array) -> memoryview:
    """The bytes of a contiguous array, which can be written to."""
    return memoryview(array.reshape(-1).view(np.uint8).data)


def write_at(descriptor: int, data: memoryview, offset: int) -> None:
    """Write bytes at an offset of an open file; raises an `OSError` if they cannot all be written."""
    while len(data):
        if sys.platform == "win32":
            with _seeking:
                os.lseek(descriptor, offset, os.SEEK_SET)
                count = os.write(descriptor, data)
        else:
            count = os.pwrite(descriptor, data, offset)
        data, offset = data[count:], offset + count


def read_at(descriptor: int, data: memoryview, offset: int) -> int:
    """Read bytes at an offset of an open file, and return how many there were."""
    total = 0
    while total < len(data):
        wanted = data[total : total + MAX_TRANSFER_BYTES]
        if sys.platform == "win32":
            with _seeking:
                os.lseek(descriptor, offset + total, os.SEEK_SET)
                part = os.read(descriptor, len(wanted))
            count = len(part)
            wanted[:count] = part
        else:
            count = os.preadv(descriptor, [wanted], offset + total)
        if not count:
            break
        total += count
    return total


def scratch_error(path: Path, error: OSError) -> MDLSTMError:
    """The error for a scratch file that cannot be written."""
    return MDLSTMError(
        f"cannot write {path}: {error.strerror or error}; free some space there, or choose another place"
    )
