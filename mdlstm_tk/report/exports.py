"""The exported models in a run folder: their metadata, and their speed on this machine."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median

import numpy as np

from mdlstm_tk.errors import MDLSTMError, require
from mdlstm_tk.io.metadata import Metadata
from mdlstm_tk.runtime import Session
from mdlstm_tk.runtime.infer import models_in
from mdlstm_tk.training import Run
from mdlstm_tk.training.staleness import note_if_stale

BATCH = 16  # samples
TIME_BUDGET = 0.3  # seconds per measurement
MIN_REPEATS, MAX_REPEATS = 3, 200


@dataclass(frozen=True)
class ExportedModel:
    """An exported model in a run folder, and median times in seconds on one CPU thread.

    Attributes:
        path: the file.
        bytes: its size.
        problem: why the model cannot be run, and the following fields are not set; else "".
        metadata: its metadata.
        stale: what `note_if_stale` says of it; "" if it was exported from the run's current checkpoint.
        grid: extents of the input.
        error: largest absolute error against float64 on export; None if it is unknown.
        load: time from the file to a session that is ready to run.
        one: time of one sample.
        batch: time of `BATCH` samples.
    """

    path: Path
    bytes: int
    problem: str = ""
    metadata: Metadata | None = None
    stale: str = ""
    grid: tuple[int, ...] = ()
    error: float | None = None
    load: float = 0.0
    one: float = 0.0
    batch: float = 0.0


def find_exports(run: Run) -> list[Path]:
    """Return the exported models in a run folder that take whole grids, sorted by name."""
    return sorted(path for path in models_in(run.folder) if path.suffix == ".onnx")


def measure_exports(paths: Sequence[Path], grid: tuple[int, ...]) -> list[ExportedModel]:
    """Measure exported models.

    Args:
        paths: see `find_exports`.
        grid: extents of the input of models that accept any grid.

    Raises:
        MissingExtraError: there are exports, but ONNX Runtime is not installed.
    """
    if not paths:
        return []
    require("onnxruntime", "cpu")
    return [_measure(path, grid) for path in paths]


def _measure(path: Path, grid: tuple[int, ...]) -> ExportedModel:
    size = path.stat().st_size
    try:
        session = Session(path, "cpu", threads=1)
        metadata = session.metadata
        extents = metadata.grid_like(grid)
        shape = metadata.shape_of(extents)
        x = np.random.default_rng(0).standard_normal((BATCH, *shape), dtype=np.float32)
        one, batch = _median_time(lambda: session(x[:1])), _median_time(lambda: session(x))
        load = _median_time(lambda: Session(path, "cpu", threads=1))
    except MDLSTMError as problem:
        return ExportedModel(path, size, str(problem))
    stale = note_if_stale(path)
    return ExportedModel(
        path, size, "", metadata, stale, extents, metadata.parity.get("max_abs"), load, one, batch
    )


def _median_time(function: Callable[[], object]) -> float:
    """Return the median time of a call in seconds, without the first call."""
    function()
    times: list[float] = []
    while len(times) < MIN_REPEATS or (sum(times) < TIME_BUDGET and len(times) < MAX_REPEATS):
        start = time.perf_counter()
        function()
        times.append(time.perf_counter() - start)
    return median(times)
