"""`TiledSession`: run a tiled export with ONNX Runtime."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from math import prod
from pathlib import Path
from tempfile import TemporaryDirectory
from threading import Lock
from typing import Any

import numpy as np

from mdlstm_tk.errors import InputError, MDLSTMError
from mdlstm_tk.io import Array
from mdlstm_tk.runtime.infer import Inference, Job, Result, failed
from mdlstm_tk.runtime.model_check import check_model
from mdlstm_tk.runtime.ort import Graph
from mdlstm_tk.runtime.session import read_model
from mdlstm_tk.runtime.shapes import Batch, restore
from mdlstm_tk.runtime.tiles.archive import parse_archive
from mdlstm_tk.runtime.tiles.files import GridFile, Mapped, Output
from mdlstm_tk.runtime.tiles.plan import Group, Plan, Region, Tile, extents_of

TILE = 512
BATCH_SIZE = 4  # tiles of a run


class TiledSession:
    """A network that runs tile by tile: grids of any size in bounded memory, equal to the whole grid.

        >>> session = TiledSession("model.tiles", threads=2)
        >>> y = session(x, tile=512)            # x (H, W, C), perhaps memory-mapped → y (H, W, outputs)

    Tiles get the faces of their neighbours, so there is neither overlap nor seam: every position sees what
    it sees in the whole grid. Results differ from those of a whole-grid run by rounding alone.

    Args:
        model: path of a `.tiles` file that `mdlstm export --form tiles` wrote, or its content.
        device, trusted: as for `Session`.
        tile: extent of a tile along each axis, if a call names none.
        threads: number of batches of tiles that run at the same time; 0: one per core. It changes no byte.
    """

    def __init__(
        self,
        model: str | Path | bytes,
        device: str = "auto",
        *,
        tile: int = TILE,
        threads: int = 1,
        trusted: bool = False,
    ) -> None:
        data, label = read_model(model)
        self.archive = parse_archive(data, label)
        self.metadata = self.archive.metadata
        self.tile, self.threads = tile, threads or os.cpu_count() or 1
        self.graphs: dict[str, Graph] = {}
        self.states: dict[str, tuple[str, ...]] = {}  # of the cell of a graph, h first
        for name, graph in self.archive.graphs.items():
            of_graph = f"{name} in {label}"
            check_model(graph, of_graph, trusted=trusted)
            self.graphs[name] = Graph(graph, of_graph, device)
            device = self.graphs[name].device  # of the graphs that follow, too
            if name != self.archive.head:
                faces = list(self.graphs[name].dtypes)[1:]  # after x, for each axis
                self.states[name] = tuple(face[:-1] for face in faces[: len(faces) // self.metadata.ndim])
        self.device, self.reason = device, next(iter(self.graphs.values())).reason

    def __call__(self, x: Any, tile: int | None = None, batch_size: int | None = None) -> Array:
        """Run the network on an array.

        Args:
            x: real numbers of shape (N, *grid, C), (*grid, C) or, if C is 1, (*grid). It is read by region,
                so it may be an `np.memmap` that is larger than the memory.
            tile: extent of a tile along each axis.
            batch_size: most tiles that run in one batch. None: 4.

        Returns:
            What a `Session` with the model of the whole grid returns.
        """
        m, x = self.metadata, np.asanyarray(x)
        has_batch_axis = x.ndim == m.ndim + 2 and len(x) > 0  # without samples, GridFile refuses the shape
        samples = x if has_batch_axis else x[None]
        sources = [GridFile(sample, m, "x") for sample in samples]
        y = np.empty((len(samples), *self.archive.output_shape(sources[0].grid)), np.float32)
        with TemporaryDirectory(prefix="mdlstm-tiles-") as folder:
            for source, target in zip(sources, y, strict=True):
                self.run_tiles(source, target, Path(folder), tile, batch_size)
        batch = Batch({}, has_batch_axis, sources[0].has_channel_axis)
        return restore({m.output_names[0]: y}, batch, m)  # type: ignore[return-value]

    def run_file(self, run: Inference, job: Job) -> Result:
        """Run the network on a file, and write the result; `Inference` calls it."""
        with ExitStack() as stack:
            try:
                source = stack.enter_context(GridFile.open(job.source, self.metadata))
                shape = self.archive.output_shape(source.grid)
                has_grid = self.metadata.window is not None
                target = Path(os.path.realpath(job.target))
                if has_grid:
                    target.parent.mkdir(parents=True, exist_ok=True)
                place = target.parent if has_grid else None  # of a file that only gets its name in the end
                scratch = Path(stack.enter_context(TemporaryDirectory(prefix=".mdlstm-tiles-", dir=place)))
                how: Any = {"batch_size": run.batch_size, "report": run.report}
                # A grid without values: answers need its extents alone.
                batch = Batch({"x": np.empty((1, *source.grid, 0))}, False, source.has_channel_axis)
                if has_grid:
                    output = Output(scratch, shape, self.metadata, run, job.form, batch)
                    self.run_tiles(source, output, scratch, **how)
                    output.finish(target)
                    return Result(job, shapes=[output.shape])
                y = np.empty(shape, np.float32)
                self.run_tiles(source, y, scratch, **how)
                return run.finish(job, {None: ({self.metadata.output_names[0]: y[None]}, batch)})
            except (InputError, MemoryError) as error:
                return failed(job, error)
            except OSError as error:
                raise MDLSTMError(f"cannot write {job.target}: {error.strerror or error}") from None

    def run_tiles(
        self,
        source: GridFile,
        output: Any,
        folder: Path,
        tile: int | None = None,
        batch_size: int | None = None,
        report: Callable[[int, int], None] | None = None,
    ) -> None:
        """Run all tiles of a grid, and write y (*grid, outputs) to an array by region. A folder holds what
        does not fit into memory meanwhile."""
        windows = [stage.window for stage in self.archive.stages]
        plan = Plan(source.grid, tile or self.tile, windows, self.archive.sweeps, batch_size or BATCH_SIZE)
        work, done = _Work(self, plan, source, output, folder), 0
        total = prod(plan.counts) * len(plan.sweeps)
        with ThreadPoolExecutor(self.threads) as executor:
            for groups in plan.steps:
                alone = self.threads == 1 or len(groups) == 1
                results: Any = (map if alone else executor.map)(work.run, groups)
                for group, sums in zip(groups, results, strict=True):
                    work.add_to_pool(group, sums)
                    done += len(group.tiles)
                if report:
                    report(done, total)
        work.finish()


class _Work:
    """The run of a plan. Groups of one step may run on several threads."""

    def __init__(
        self, session: TiledSession, plan: Plan, source: GridFile, output: Any, folder: Path
    ) -> None:
        self._archive, self._graphs, self._states = session.archive, session.graphs, session.states
        self._plan, self._source, self._output = plan, source, output
        # By the sweep, the axis, and the tile that they enter.
        self._faces: dict[tuple[int, int, Tile], Array] = {}
        self._writing = Lock()  # tiles share chunks of a zarr, and blocks of a TIFF
        last = len(self._archive.stages) - 1
        self._stored = {  # the outputs of stages, in files
            s: Mapped(folder / f"stage-{s}.npy", (*plan.extents[s + 1], stage.outputs), np.float32)
            for s, stage in enumerate(self._archive.stages)
            if s < last or (len(stage.sweeps) > 1 and not self._archive.pool)
        }
        pooled = [1 if d in self._archive.pool else extent for d, extent in enumerate(plan.extents[-1])]
        self._sums = np.zeros((*pooled, self._archive.stages[last].outputs)) if self._archive.pool else None

    def run(self, group: Group) -> Array | None:
        """Run one group of tiles, which are entered by the faces that others have left. Returns sums of the
        last stage along pooled axes."""
        plan, (number, tiles), sweep = self._plan, group, self._plan.sweeps[group.sweep]
        states, ndim = self._states[sweep.file], len(plan.counts)
        outputs = self._graphs[sweep.file](self._feeds(group, states))
        for axis in range(ndim):
            leaving = np.stack([outputs[f"{state}{axis}_n"] for state in states], axis=1)
            for tile, face in zip(tiles, leaving, strict=True):
                if (after := plan.following(number, tile, axis)) is not None:
                    self._faces[number, axis, after] = face
        return self._complete(number, tiles, outputs["part"])

    def _feeds(self, group: Group, states: Sequence[str]) -> dict[str, Array]:
        """The inputs of a graph for a group of tiles. Nothing else holds them, as they are large."""
        plan, (number, tiles), sweep = self._plan, group, self._plan.sweeps[group.sweep]
        stage, level = self._archive.stages[sweep.stage], sweep.stage
        read = self._source.read if level == 0 else self._stored[level - 1].__getitem__
        extents = extents_of(plan.region(level, tiles[0]))
        feeds = {"x": np.empty((len(tiles), *extents, stage.channels), np.float32)}
        for k, tile in enumerate(tiles):
            feeds["x"][k] = read(plan.region(level, tile))
        extents = extents_of(plan.region(level + 1, tiles[0]))
        for axis in range(len(extents)):
            face_extents = (*extents[:axis], *extents[axis + 1 :], stage.units)
            faces = np.zeros((len(states), len(tiles), *face_extents), np.float32)
            for k, tile in enumerate(tiles):
                if (face := self._faces.pop((number, axis, tile), None)) is not None:
                    faces[:, k] = face
            feeds |= {f"{state}{axis}": face for state, face in zip(states, faces, strict=True)}
        return feeds

    def _complete(self, number: int, tiles: tuple[Tile, ...], parts: Array) -> Array | None:
        """Add the parts of a sweep to the output of its stage, and write y where the last stage is
        complete."""
        plan, sweep = self._plan, self._plan.sweeps[number]
        stage = self._archive.stages[sweep.stage]
        is_last_stage = stage is self._archive.stages[-1]
        in_stage = [k for k, each in enumerate(plan.sweeps) if each.stage == sweep.stage]
        if is_last_stage and self._archive.pool:
            axes = tuple(d + 1 for d in self._archive.pool)
            return np.asarray(parts.sum(axis=axes, dtype=np.float64, keepdims=True))
        first = 0 if stage.added else sweep.position * stage.features
        at = slice(first, first + stage.features)
        is_complete = is_last_stage and number == in_stage[-1]
        h = np.empty((*parts.shape[:-1], stage.outputs), np.float32) if is_complete else None
        for k, (tile, part) in enumerate(zip(tiles, parts, strict=True)):
            region = plan.region(sweep.stage + 1, tile)
            if stage.added and number != in_stage[0]:
                part = self._stored[sweep.stage][region] + part
            if h is None:
                self._stored[sweep.stage][(*region, at)] = part
                continue
            if len(in_stage) > 1 and not stage.added:
                h[k] = self._stored[sweep.stage][region]
            h[k][..., at] = part
        if h is not None:
            ups, limits = self._archive.upsample, self._archive.output_shape(plan.extents[0])
            for tile, y in zip(tiles, self._head(h), strict=True):
                parts_of = zip(plan.region(len(self._archive.stages), tile), ups, limits, strict=False)
                target: Region = tuple(slice(p.start * up, min(p.stop * up, e)) for p, up, e in parts_of)
                with self._writing:
                    self._output[target] = y[tuple(map(slice, extents_of(target)))]
        return None

    def add_to_pool(self, group: Group, sums: Array | None) -> None:
        if sums is None or self._sums is None:
            return
        sweep, stage = self._plan.sweeps[group.sweep], self._archive.stages[-1]
        first = 0 if stage.added else sweep.position * stage.features
        for tile, part in zip(group.tiles, sums, strict=True):
            region = enumerate(self._plan.region(len(self._archive.stages), tile))
            where = (slice(0, 1) if d in self._archive.pool else part_ for d, part_ in region)
            self._sums[(*where, slice(first, first + stage.features))] += part

    def finish(self) -> None:
        """Write the result of a network that averages over the grid."""
        if self._sums is not None:
            count = prod(self._plan.extents[-1][d] for d in self._archive.pool)
            h = (self._sums / count).astype(np.float32)[None]
            self._output[...] = self._head(h)[0].squeeze(self._archive.pool)

    def _head(self, h: Array) -> Array:
        y = h if self._archive.head is None else self._graphs[self._archive.head]({"x": h})["y"]
        if y.shape[-1] != self._archive.metadata.outputs:
            raise MDLSTMError("the graphs of the archive do not fit together; export the model again")
        return y
