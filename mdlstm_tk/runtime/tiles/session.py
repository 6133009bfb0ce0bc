"""`TiledSession`: run a tiled export with ONNX Runtime."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from math import prod
from pathlib import Path

import numpy as np

from mdlstm_tk._util.sizes import format_size
from mdlstm_tk.errors import InputError, MDLSTMError
from mdlstm_tk.runtime.io.arrays import to_float32
from mdlstm_tk.runtime.io.npy import FLOAT_BYTES, MAX_BYTES, Array
from mdlstm_tk.runtime.local_runner import LocalRunner, Runner
from mdlstm_tk.runtime.metadata import Metadata
from mdlstm_tk.runtime.session import MAX_TIMEOUT
from mdlstm_tk.runtime.tiles.archive import Archive, Stage, parse_archive, read_archive_bytes
from mdlstm_tk.runtime.tiles.local import Report, State, run_steps
from mdlstm_tk.runtime.tiles.plan import Plan, Region, tile_extents
from mdlstm_tk.runtime.tiles.stream import RowStream
from mdlstm_tk.runtime.tiles.work import (
    Output,
    Source,
    Work,
    make_plan,
    make_store,
    ordered_sweeps,
    output_extents,
)

TILE = 512
BATCH_SIZE = 4
BASE_BYTES = 128 * 2**20  # Python, NumPy and ONNX Runtime with a loaded model
GATE_SHARE = 1.25  # of the pre-activations of all positions, which is what a graph holds at its peak


class TiledSession:
    """A network that runs tile by tile: grids of any size in bounded memory, equal to the whole grid.

        >>> session = TiledSession("model.tiles", threads=2)
        >>> y = session(x, tile=512)            # x (H, W, C), perhaps memory-mapped → y (H, W, outputs)
        >>> stream = session.stream(width=4096) # rows in, rows out, for directions that go downwards

    Tiles get the faces of their neighbours, so there is neither overlap nor seam: every position sees what
    it sees in the whole grid. Results differ from those of a whole-grid run by rounding alone, and not at
    all between numbers of threads. `docs/tiled_inference.md` explains how, and what it costs.

    The model may be untrusted, as for `Session`: each graph passes the same checks.

    Args:
        model: path of a `.tiles` file that `mdlstm export --form tiles` wrote, or its content.
        device: "auto" (CUDA if it works, else CPU), "cpu", "cuda" or "cuda:N".
        threads: number of batches of tiles that run at the same time, each on one thread. The result is the
            same to the byte for any number.
        timeout: maximum duration of one batch of tiles in seconds; None: no limit, or 120 s in isolation.
        max_bytes: bytes of resident memory that runs keep to by smaller batches, as far as can be
            estimated, x and y in memory aside. None: no bound.
        tf32: as for `Session`.
        isolated: run each graph in a child process with limits; see `Session`.
        trusted: as for `Session`.

    Attributes:
        metadata: what the file says about the network.
        archive: its parts.
        device, provider, reason, isolated: as for `Session`.

    Raises:
        InputError: the file does not exist, is no tiled export, or is refused; or an argument is invalid.
        DeviceError: CUDA was asked for and cannot be used.
        MissingExtraError: ONNX Runtime is not installed.
        StoppedError: the model exceeds a limit while it is loaded.
    """

    def __init__(
        self,
        model: str | Path | bytes,
        device: str = "auto",
        *,
        threads: int = 1,
        timeout: float | None = None,
        max_bytes: int | None = None,
        tf32: bool = False,
        isolated: bool | None = False,
        trusted: bool = False,
    ) -> None:
        if timeout is not None and not 0 <= timeout <= MAX_TIMEOUT:
            raise InputError(f"timeout must be from 0 to {MAX_TIMEOUT:g} seconds, got {timeout}")
        label = "the model" if isinstance(model, bytes) else str(model)
        data = model if isinstance(model, bytes) else read_archive_bytes(Path(model))
        self.archive: Archive = parse_archive(data, label)
        self.metadata: Metadata = self.archive.metadata
        self.label, self.timeout = label, timeout
        self.threads, self.max_bytes = threads or _cores(), max_bytes
        self.isolated = _needs_isolation(data) if isolated is None else isolated
        self._runners: list[Runner] = []

        def load(name: str) -> Runner:
            graph, of = self.archive.graphs[name], f"{name} in {label}"
            runner: Runner
            if self.isolated:
                from mdlstm_tk.runtime.isolation.limits import Limits  # imported late, as by `Session`
                from mdlstm_tk.runtime.isolation.runner import IsolatedRunner

                runner = IsolatedRunner(graph, of, device, tf32, Limits(MAX_BYTES, timeout, 1))
            else:
                runner = LocalRunner(
                    graph,
                    of,
                    device,
                    threads=1,
                    timeout=timeout,
                    max_bytes=MAX_BYTES,
                    tf32=tf32,
                    trusted=trusted,
                )
            self._runners.append(runner)
            return runner

        try:
            self.graphs: list[Runner] = []
            stages = list(self.archive.stages)
            for s, k in ordered_sweeps(self.archive):
                runner = load(stages[s].sweeps[k].file)
                stages[s] = _with_states(stages[s], Metadata.from_props(runner.props, label), label)
                self.graphs.append(runner)
            self.archive = replace(self.archive, stages=tuple(stages))
            self.head: Runner | None = None
            if self.archive.head is not None:
                self.head = load(self.archive.head)
                _check_head(Metadata.from_props(self.head.props, label), self.archive, label)
        except BaseException:
            self.close()
            raise
        self.device: str = self.graphs[0].device
        self.provider: str = self.graphs[0].provider
        self.reason: str | None = self.graphs[0].reason

    def __call__(self, x: Array, tile: int | Sequence[int] = TILE, batch_size: int | None = None) -> Array:
        """Run the network on an array.

        Args:
            x: real numbers of shape (N, *grid, C), (*grid, C) or, if C is 1, (*grid). It is read by region,
                so it may be an `np.memmap` that is larger than the memory.
            tile: extents of a tile, or one number for all axes. They are rounded down to a multiple of the
                windows of the network.
            batch_size: most tiles that run in one batch. None: 4, or fewer to keep to `max_bytes`.

        Returns:
            What a `Session` with the model of the whole grid returns: y as float32,
            (N, *⌈grid/window⌉, outputs), or without the axes that the network averages over. It has a batch
            axis if x has one, and no channel axis if x has none and there is one output.

        Raises:
            InputError: x has the wrong shape or is not finite, or a tile needs more than `max_bytes`.
            StoppedError: a batch exceeds a limit on time or memory.
            MDLSTMError: ONNX Runtime fails, the disk is full, or the session is closed.
        """
        x = np.asanyarray(x)
        ndim = self.metadata.ndim
        has_channel_axis, has_batch_axis = x.ndim > ndim, x.ndim == ndim + 2
        if x.ndim not in (ndim, ndim + 1, ndim + 2):
            raise InputError(
                f"x has shape {x.shape}, expected {ndim} grid axes, with or without channels and batch"
            )
        samples = x if has_batch_axis else x[None]
        samples = samples if has_channel_axis else samples[..., None]
        channels = self.metadata.channels
        if samples.shape[-1] != channels:
            raise InputError(
                f"x of shape {x.shape} has {samples.shape[-1]} channels at each position, expected "
                f"{channels}"
            )
        grid = samples.shape[1:-1]
        y = np.empty((len(samples), *self.output_shape(grid)), np.float32)
        for sample, result in zip(samples, y, strict=True):
            self.run(ArraySource(sample), ArrayOutput(result), tile, batch_size)
        has_grid = self.metadata.window is not None
        if has_grid and y.shape[-1] == 1 and not has_channel_axis:
            y = y[..., 0]
        return y if has_batch_axis else y[0]

    def run(
        self,
        source: Source,
        output: Output,
        tile: int | Sequence[int] = TILE,
        batch_size: int | None = None,
        *,
        scratch: Path | None = None,
        state: State | None = None,
        resume: bool = False,
        report: Report | None = None,
    ) -> None:
        """Run the network on a grid that is read and written by region.

        Args:
            source: x.
            output: y, of `output_shape(source.grid)`.
            tile, batch_size: as for a call.
            scratch: folder for what lies between the sweeps. None: a temporary one.
            state: notes what is done, in `scratch`.
            resume: go on from there.
            report: is called with the numbers of tiles that are done and of all.

        Raises:
            MDLSTMError: as for a call.
        """
        if not self._runners:
            raise MDLSTMError("this session is closed; open the model again with TiledSession(...)")
        plan = self.plan(source.grid, tile, batch_size)
        if scratch is None:
            from tempfile import TemporaryDirectory  # imported late: most models need none

            with TemporaryDirectory(prefix="mdlstm-tiles-") as folder:
                self.run(source, output, tile, batch_size, scratch=Path(folder), report=report)
            return
        store = make_store(self.archive, plan, scratch)
        try:
            work = Work(self.archive, self.graphs, self.head, plan, store, source, output)
            run_steps(work, plan, store, threads=self.threads, state=state, resume=resume, report=report)
            work.finish()
        finally:
            store.close()

    def stream(self, width: int | Sequence[int]) -> RowStream:
        """Begin a stream of rows: `stream.feed(rows)` takes (r, *width, C) of any height r and returns
        the rows of y that are complete, `stream.close()` those that are left.

        It is exact, but for rounding, where every direction of every layer goes downwards (sign +1 on
        axis 0). A direction that goes upwards starts at the last row, so the network is refused. Memory
        grows with the width, not with the number of rows.

        Args:
            width: extent of each axis but the first; a number if there is one such axis.

        Raises:
            InputError: a direction goes upwards, the network averages over the grid, or the width is
                invalid.
        """
        return RowStream(self, width)

    def plan(
        self, grid: Sequence[int], tile: int | Sequence[int] = TILE, batch_size: int | None = None
    ) -> Plan:
        """The plan for a grid.

        Raises:
            InputError: the network does not take the grid, or a tile needs more than `max_bytes`.
        """
        if len(grid) != self.metadata.ndim or min(grid) < 1:
            raise InputError(
                f"the grid has the extents {tuple(grid)}, expected {self.metadata.ndim} positive ones"
            )
        multiple_of = self.metadata.multiple_of or (1,) * len(grid)
        if any(extent % m for extent, m in zip(grid, multiple_of, strict=True)):
            raise InputError(
                f"the extents {tuple(grid)} must be multiples of {multiple_of} for this model; pad them"
            )
        extents = tile_extents(tile, len(grid))
        if batch_size is not None and batch_size < 1:
            raise InputError(f"batch_size must be at least 1, got {batch_size}")
        if batch_size is None:
            batch_size = self._batch_size(make_plan(self.archive, grid, extents, 1))
        return make_plan(self.archive, grid, extents, batch_size)

    def output_shape(self, grid: Sequence[int]) -> tuple[int, ...]:
        """The shape of y for one sample."""
        return (*output_extents(self.archive, grid), self.metadata.outputs)

    def close(self) -> None:
        """Release the model."""
        runners, self._runners = self._runners, []
        for runner in runners:
            runner.close()

    def __enter__(self) -> TiledSession:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _batch_size(self, plan: Plan) -> int:
        """The largest batch with which the run keeps to `max_bytes`."""
        if self.max_bytes is None:
            return BATCH_SIZE
        needed = tile_bytes(self.archive, plan) * self.threads
        fitting = (self.max_bytes - BASE_BYTES) // needed
        if fitting < 1:
            raise InputError(
                f"tiles of {format_size(plan.tiling.tile_extents[0])} on {self.threads} threads need "
                f"about {BASE_BYTES + needed} bytes, more than {self.max_bytes}; give a smaller --tile, or "
                "allow more with --max-bytes"
            )
        return int(min(fitting, BATCH_SIZE))


class ArraySource:
    """A grid in memory, or memory-mapped: (*grid, C)."""

    def __init__(self, x: Array, label: str = "x") -> None:
        self._x, self._label = x, label
        self.grid: tuple[int, ...] = x.shape[:-1]

    def read(self, region: Region) -> Array:
        return to_float32(np.asarray(self._x[region]), self._label)


class ArrayOutput:
    """A grid in memory."""

    def __init__(self, y: Array) -> None:
        self._y = y

    def write(self, region: Region, block: Array) -> None:
        self._y[region] = block


def tile_bytes(archive: Archive, plan: Plan) -> int:
    """About how many bytes one tile takes while it is swept, in the stage where it takes most."""
    most = 0
    for s, stage in enumerate(archive.stages):
        positions, outputs = (prod(plan.tiling.tile_extents[level]) for level in (s, s + 1))
        gates = GATE_SHARE * (3 + len(stage.window)) * stage.units
        values = 3 * positions * stage.channels + outputs * (gates + 4 * stage.features)
        most = max(most, int(values * FLOAT_BYTES))
    head = prod(plan.tiling.tile_extents[0]) * archive.metadata.outputs * 3 * FLOAT_BYTES
    return most + (0 if archive.pool else head)


def _with_states(stage: Stage, metadata: Metadata, label: str) -> Stage:
    """The stage with the names of its states, which the faces in the metadata of one of its sweeps tell."""
    ndim, faces = len(stage.window), metadata.inputs[1:]
    states = tuple(face.removesuffix("0") for face in faces[: len(faces) // ndim])
    expected = tuple(f"{state}{d}" for d in range(ndim) for state in states)
    found = (metadata.ndim, metadata.channels, metadata.outputs, metadata.window)
    names = ("x", *expected), ("part", *(f"{face}_n" for face in expected))
    if (
        found != (ndim, stage.channels, stage.features, stage.window)
        or (metadata.inputs, metadata.output_names) != names
        or states[:1] != ("h",)
        or stage.states not in ((), states)
    ):
        raise InputError(
            f"{metadata.part or 'a graph'} in {label} has other faces or features than tiles.json says; "
            "export the model again"
        )
    return replace(stage, states=states)


def _check_head(metadata: Metadata, archive: Archive, label: str) -> None:
    features = archive.stages[-1].outputs
    if (metadata.channels, metadata.outputs) != (features, archive.metadata.outputs):
        raise InputError(
            f"the head in {label} maps {metadata.channels} features to {metadata.outputs}, expected "
            f"{features} to {archive.metadata.outputs}; export the model again"
        )


def _needs_isolation(data: bytes) -> bool:
    from mdlstm_tk.runtime.isolation.rule import isolation_problem, was_exported_here

    return isolation_problem() is None and not was_exported_here(data)


def _cores() -> int:
    import os

    return os.cpu_count() or 1
