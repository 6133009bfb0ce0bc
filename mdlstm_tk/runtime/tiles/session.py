"""`TiledSession`: run a tiled export with ONNX Runtime."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from math import prod
from pathlib import Path
from typing import Any

import numpy as np

from mdlstm_tk._util.checks import checked
from mdlstm_tk._util.sizes import format_size
from mdlstm_tk._util.text import counted
from mdlstm_tk.errors import TILED_EXPORT, Argument, InputError
from mdlstm_tk.runtime.io.npy import FLOAT_BYTES, Array, byte_limit, read_model_file
from mdlstm_tk.runtime.metadata import Metadata
from mdlstm_tk.runtime.runner import GraphInfo, OpenModel
from mdlstm_tk.runtime.shapes import Shapes, as_array
from mdlstm_tk.runtime.tiles.archive import Archive, Stage, parse_archive
from mdlstm_tk.runtime.tiles.local import on_threads, run_steps
from mdlstm_tk.runtime.tiles.plan import Plan, tile_extents
from mdlstm_tk.runtime.tiles.sources import GridSource
from mdlstm_tk.runtime.tiles.store import BlockFolder
from mdlstm_tk.runtime.tiles.work import Work

TILE = 512
BATCH_SIZE = 4
BASE_BYTES = 128 * 2**20  # Python, NumPy and ONNX Runtime with a loaded model
GATE_SHARE = 1.25  # of the pre-activations of all positions, which is what a graph holds at its peak


class TiledSession(OpenModel):
    """A network that runs tile by tile: grids of any size in bounded memory, equal to the whole grid.

        >>> session = TiledSession("model.tiles", threads=2)
        >>> y = session(x, tile=512)            # x (H, W, C), perhaps memory-mapped → y (H, W, outputs)

    Tiles get the faces of their neighbours, so there is neither overlap nor seam: every position sees what
    it sees in the whole grid. Results differ from those of a whole-grid run by rounding alone.
    `docs/tiled_inference.md` explains how, and what it costs.

    Each graph passes the check of every model. A session can be pickled.

    Args:
        model: path of a `.tiles` file that `mdlstm export --form tiles` wrote, or its content.
        device: "auto" (CUDA if it works, else CPU), "cpu", "cuda" or "cuda:N".
        threads: number of batches of tiles that run at the same time, each on one thread; 0: one per core.
            The result is the same to the byte for any number; but with `max_bytes` more threads mean
            smaller batches, unless their size is given.
        timeout: maximum duration of one batch of tiles in seconds; None: no limit, or 120 s in isolation.
        max_bytes: maximum size in bytes of the file, and bytes of resident memory that runs keep to by
            smaller batches, as far as can be estimated, x and y in memory aside. None: 1 GiB for the file,
            and no bound for runs.
        tf32, trusted: as for `Session`.
        isolated: run all graphs in one child process with limits; see `Session`.

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

    @checked
    def __init__(
        self,
        model: str | Path | bytes,
        device: str = "auto",
        *,
        threads: int = 1,
        timeout: float | None = None,
        max_bytes: int | None = None,
        tf32: bool = False,
        isolated: bool = False,
        trusted: bool = False,
    ) -> None:
        label = "the model" if isinstance(model, bytes) else str(model)
        limit = byte_limit(max_bytes)
        data = model if isinstance(model, bytes) else read_model_file(Path(model), limit, TILED_EXPORT)
        options: dict[str, Any] = {"timeout": timeout, "max_bytes": max_bytes, "device": device}
        options |= {"tf32": tf32, "isolated": isolated, "trusted": trusted}
        self._arguments = data, {**options, "threads": threads}
        self.threads, self.max_bytes = threads or os.cpu_count() or 1, max_bytes
        archive = parse_archive(data, label)
        # A batch runs on one thread: several batches run at the same time.
        runner = self._open(archive.graphs, label, threads=1, **options)
        try:
            stages = tuple(_with_states(stage, runner.graphs, label) for stage in archive.stages)
        except BaseException:
            self.close()
            raise
        self.archive: Archive = replace(archive, stages=stages)
        self.metadata: Metadata = archive.metadata

    @checked
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
        from tempfile import TemporaryDirectory  # imported late: most models need none

        shapes = Shapes(self.metadata)
        batch = shapes.with_axes(as_array(x, "x"))
        grid = shapes.grid(batch.samples)
        plan = self.plan(grid, tile, batch_size)
        y = np.empty((len(batch.samples), *self.archive.output_shape(grid)), np.float32)
        for sample, result in zip(batch.samples, y, strict=True):
            source = GridSource(sample, self.metadata, "x")
            with TemporaryDirectory(prefix="mdlstm-tiles-") as folder:
                work = Work(self.archive, self.graphs, plan, BlockFolder(Path(folder)), source, result)
                with on_threads(work, self.threads) as run_groups:
                    run_steps(work, run_groups)
        return np.asarray(shapes.restore_axes({self.metadata.output_names[0]: y}, batch))

    def plan(
        self, grid: Sequence[int], tile: int | Sequence[int] = TILE, batch_size: int | None = None
    ) -> Plan:
        """The plan for a grid."""
        windows, sweeps = [stage.window for stage in self.archive.stages], self.archive.sweeps
        plan_of = partial(Plan, grid, tile_extents(tile, len(grid)), windows, sweeps)
        if batch_size is not None and batch_size < 1:
            raise InputError(f"batch_size must be at least 1, got {batch_size}")
        if batch_size is None:
            batch_size = self._batch_size(plan_of(1))
        return plan_of(batch_size)

    def _batch_size(self, plan: Plan) -> int:
        """The largest batch with which the run keeps to `max_bytes`."""
        if self.max_bytes is None:
            return BATCH_SIZE
        nbytes = _tile_bytes(self.archive, plan) * self.threads
        fitting = (self.max_bytes - BASE_BYTES) // nbytes
        if fitting < 1:
            raise InputError(
                f"tiles of {format_size(plan.tile_extents[0])} on {counted(self.threads, 'thread')} "
                f"need about {BASE_BYTES + nbytes} bytes, more than {self.max_bytes}; give a smaller ",
                *(Argument("tile"), ", or allow more with ", Argument("max_bytes")),
            )
        return int(min(fitting, BATCH_SIZE))


def _tile_bytes(archive: Archive, plan: Plan) -> int:
    """About how many bytes one tile takes while it is swept, in the stage where it takes most."""
    sizes = [prod(extents) for extents in plan.tile_extents]
    gates = [GATE_SHARE * (3 + len(stage.window)) * stage.units for stage in archive.stages]
    largest = max(
        3 * sizes[s] * stage.channels + sizes[s + 1] * (gates[s] + 4 * stage.features)
        for s, stage in enumerate(archive.stages)
    )
    head = 0 if archive.pool else sizes[0] * archive.metadata.outputs * 3
    return int(largest * FLOAT_BYTES) + head * FLOAT_BYTES


def _with_states(stage: Stage, graphs: Mapping[str, GraphInfo], label: str) -> Stage:
    """The stage with the names of its states, which the faces in the metadata of its sweeps tell."""
    ndim = len(stage.window)
    for sweep in stage.sweeps:
        metadata = Metadata.from_props(graphs[sweep.file].props, label)
        faces = metadata.inputs[1:]
        states = tuple(face.removesuffix("0") for face in faces[: len(faces) // ndim])
        expected = tuple(f"{state}{d}" for d in range(ndim) for state in states)
        names = ("x", *expected), ("part", *(f"{face}_n" for face in expected))
        shape = (metadata.ndim, metadata.channels, metadata.outputs, metadata.window)
        if (
            shape != (ndim, stage.channels, stage.features, stage.window)
            or (metadata.inputs, metadata.output_names) != names
            or states[:1] != ("h",)
            or stage.states not in ((), states)
            or metadata.part not in (None, sweep.file.removesuffix(".onnx"))
        ):
            raise InputError(
                f"{sweep.file} in {label} has other faces or features than tiles.json says; export the "
                "model again"
            )
        stage = replace(stage, states=states)
    return stage
