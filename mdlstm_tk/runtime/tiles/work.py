"""`Work`: runs one group of tiles, in any process."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

import numpy as np

from mdlstm_tk.errors import MDLSTMError
from mdlstm_tk.runtime.io.npy import Array
from mdlstm_tk.runtime.runner import Runner
from mdlstm_tk.runtime.tiles.archive import Archive
from mdlstm_tk.runtime.tiles.plan import Group, Plan, Region, shape_of
from mdlstm_tk.runtime.tiles.sources import GridSource
from mdlstm_tk.runtime.tiles.store import BlockFolder, Store


class Output(Protocol):
    """A grid that is written by region, such as an array: y (*extents, outputs)."""

    def __setitem__(self, region: Region, block: Array, /) -> None: ...


class Work:
    """Runs groups of tiles. Calls from several threads are safe for different groups.

    `blocks` hold what tiles leave for later sweeps.
    """

    def __init__(
        self,
        archive: Archive,
        graphs: Runner,
        plan: Plan,
        blocks: BlockFolder,
        source: GridSource,
        output: Output,
    ) -> None:
        self.plan, self.graphs, self.store = plan, graphs, Store(archive, plan, blocks)
        self.output = output
        self._archive, self._source = archive, source

    def run(self, group: Group) -> None:
        """Run one group of tiles, which are entered by the faces that others have left, and store what it
        leaves. A face is (S, *extents of the other axes, n), the states in the order of `Stage.states`.

        Raises:
            MDLSTMError: ONNX Runtime fails, a graph does not do what the archive says, or a file cannot be
                read or written.
        """
        sweep, tiles = group
        plan, number = self.plan, self.plan.sweeps[sweep].stage
        stage, shape = self._archive.stages[number], plan.shape(number + 1, tiles[0])
        if number == 0:
            inputs = [self._source.read(plan.region(0, tile)) for tile in tiles]
        else:
            inputs = [self.store.output(number - 1, tile) for tile in tiles]
        feeds, expected = {"x": np.stack(inputs)}, {"part": (*shape, stage.features)}
        for axis in range(len(shape)):
            face_shape = (*shape[:axis], *shape[axis + 1 :], stage.units)
            faces = [self.store.face(sweep, tile, axis) for tile in tiles]
            zeros = np.zeros((len(stage.states), *face_shape), np.float32)
            entering = np.stack([zeros if face is None else face for face in faces], axis=1)
            feeds |= {f"{state}{axis}": face for state, face in zip(stage.states, entering, strict=True)}
            expected |= {f"{state}{axis}_n": face_shape for state in stage.states}
        outputs = self.graphs.run(feeds, plan.sweeps[sweep].file)
        self._check(outputs, expected, group)
        for axis in range(len(shape)):
            leaving = np.stack([outputs[f"{state}{axis}_n"] for state in stage.states], axis=1)
            for tile, face in zip(tiles, leaving, strict=True):
                self.store.leave(sweep, tile, axis, face)
        self._complete(group, outputs["part"])

    def finish(self) -> None:
        """Write the result of a network that averages over the grid, once all groups have run."""
        pool = self._archive.pool
        if pool:
            h = self.store.pooled()[None]
            y = self._apply_head(h, h.shape[1:-1])[0].squeeze(pool)
            self.output[tuple(slice(0, extent) for extent in y.shape[:-1])] = y

    def _complete(self, group: Group, parts: Array) -> None:
        """Store the parts of a sweep, and write y where the last stage is complete with them."""
        outputs = [
            self.store.complete(group.sweep, t, part) for t, part in zip(group.tiles, parts, strict=True)
        ]
        blocks = [block for block in outputs if block is not None]  # all of them, or none
        if not blocks:
            return
        archive, plan, h = self._archive, self.plan, np.stack(blocks)
        ups, extents = archive.upsample, archive.output_shape(plan.extents[0])[:-1]
        y = self._apply_head(h, tuple(e * up for e, up in zip(h.shape[1:-1], ups, strict=True)))
        for tile, block in zip(group.tiles, y, strict=True):
            ranges = zip(plan.region(len(archive.stages), tile), ups, extents, strict=True)
            region = tuple(slice(p.start * up, min(p.stop * up, extent)) for p, up, extent in ranges)
            self.output[region] = block[tuple(map(slice, shape_of(region)))]

    def _apply_head(self, h: Array, extents: tuple[int, ...]) -> Array:
        """y (N, *extents, outputs) for h (N, …, F), the output of the last stage."""
        archive = self._archive
        y = h if archive.head is None else self.graphs.run({"x": h}, archive.head).get("y")
        if y is None or y.shape != (len(h), *extents, archive.metadata.outputs):
            returned = "no y" if y is None else f"y of shape {y.shape}"
            raise MDLSTMError(
                f"the head returned {returned} for x of shape {h.shape}, which contradicts the archive; "
                "export the model again"
            )
        return y

    def _check(
        self, outputs: Mapping[str, Array], expected: Mapping[str, tuple[int, ...]], group: Group
    ) -> None:
        """Check that a graph has returned all that its archive says."""
        for name, shape in expected.items():
            y, shape = outputs.get(name), (len(group.tiles), *shape)
            if y is None or y.dtype != np.float32 or y.shape != shape:
                returned = "nothing" if y is None else f"{y.dtype} of shape {y.shape}"
                raise MDLSTMError(
                    f"sweep {group.sweep} returned {returned} for '{name}', expected float32 of shape "
                    f"{shape}; the graphs of the archive do not fit together, so export the model again"
                )
