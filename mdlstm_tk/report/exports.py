"""The exported models of a run: what they say of themselves, and how fast they are here."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from statistics import median

import numpy as np

from mdlstm_tk.errors import MDLSTMError, require
from mdlstm_tk.runtime import Metadata, Session
from mdlstm_tk.training import Run

BATCH = 16
SPENT = 0.3  # seconds, on each measurement
FEWEST, MOST = 3, 200  # runs in a measurement


@dataclass(frozen=True)
class Speed:
    """Seconds on one thread of the CPU, medians.

    Attributes:
        grid: that was run.
        load: from the file to a model that is ready.
        one: of a run of one sample.
        batch: of a run of BATCH samples.
    """

    grid: tuple[int, ...]
    load: float
    one: float
    batch: float


@dataclass(frozen=True)
class Export:
    """A model beside the run.

    Attributes:
        path: of the file.
        bytes: its size.
        about: what it says of itself.
        current: was it made from the checkpoint that the run has now?
        speed: of it.
        problem: why it cannot be run; there is nothing else then.
    """

    path: Path
    bytes: int
    about: Metadata | None = None
    current: bool = False
    speed: Speed | None = None
    problem: str = ""


def measure_exports(run: Run, grid: tuple[int, ...]) -> list[Export]:
    """All models in the run's folder. Those that take any grid are run on `grid`.

    Raises:
        MissingExtraError: there are some, but ONNX Runtime is not installed.
    """
    paths = sorted(run.folder.glob("model*.onnx"))
    if not paths:
        return []
    require("onnxruntime", "cpu")
    checkpoint = hashlib.sha256(run.checkpoint.read_bytes()).hexdigest()
    return [_measure(path, grid, checkpoint) for path in paths]


def _measure(path: Path, grid: tuple[int, ...], checkpoint: str) -> Export:
    size = path.stat().st_size
    try:
        load = _seconds(lambda: Session(path, "cpu", threads=1))
        with Session(path, "cpu", threads=1) as session:
            about = session.metadata
            extents = about.grid or grid
            rng = np.random.default_rng(0)
            shape = (*extents, about.channels) if about.channels_last else (about.channels, *extents)
            x = rng.standard_normal((BATCH, *shape), dtype=np.float32)
            one, batch = _seconds(lambda: session(x[:1])), _seconds(lambda: session(x))
    except MDLSTMError as error:
        return Export(path, size, problem=str(error))
    current = about.checkpoint_sha256 == checkpoint
    return Export(path, size, about, current, Speed(extents, load, one, batch))


def _seconds(run: Callable[[], object]) -> float:
    """The median time of a run, after one that does not count."""
    run()
    times: list[float] = []
    while len(times) < FEWEST or (sum(times) < SPENT and len(times) < MOST):
        start = time.perf_counter()
        run()
        times.append(time.perf_counter() - start)
    return median(times)
