"""Run folders: `runs/NAME/` holds the configuration, checkpoints, metrics, pictures and result of a run."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from itertools import count
from pathlib import Path

from mdlstm_tk._util.regular_files import read_json
from mdlstm_tk.errors import InputError
from mdlstm_tk.runtime.io.files import atomic_write, is_empty, staging
from mdlstm_tk.training.config import NO_CODE, Code
from mdlstm_tk.training.metrics_file import Record, read_records
from mdlstm_tk.training.progress import TrainingTimes

RUNS = Path("runs")
MAX_JSON_BYTES = 2**20  # of times.json and result.json


@dataclass(frozen=True)
class Run:
    """The paths of a run's files.

    Attributes:
        folder: the run folder.
        code: the Python files that the user has named in this call, by setting ("model", "cell"), if the
            run has a network or a cell of the user's own: {"cell": "mine.py:coupled"}.
    """

    folder: Path
    code: Code = field(default_factory=dict, compare=False)

    @property
    def config(self) -> Path:
        return self.folder / "config.toml"

    @property
    def metrics(self) -> Path:
        return self.folder / "metrics.jsonl"

    @property
    def best(self) -> Path:
        return self.folder / "best.safetensors"

    @property
    def last(self) -> Path:
        return self.folder / "last.safetensors"

    @property
    def checkpoint(self) -> Path:
        """The best checkpoint, or the last one if training ended before the first validation."""
        return self.best if self.best.exists() else self.last

    @property
    def curves(self) -> Path:
        return self.folder / "curves.png"

    @property
    def prediction(self) -> Path:
        return self.folder / "prediction.png"

    @property
    def report(self) -> Path:
        return self.folder / "report.html"

    @property
    def result(self) -> Path:
        return self.folder / "result.json"

    @property
    def times(self) -> Path:
        return self.folder / "times.json"

    @property
    def is_evaluated(self) -> bool:
        """Whether result and pictures have been written since the last training step."""
        return all(path.exists() for path in (self.result, self.curves, self.prediction))

    def start(self, resume: bool) -> None:
        """Remove what training would make outdated.

        These are result and pictures, and, unless the run is resumed, the checkpoints and times of an
        earlier run in this folder.
        """
        outdated = [self.result, self.curves, self.prediction]
        for path in outdated if resume else [*outdated, self.best, self.last, self.times]:
            path.unlink(missing_ok=True)

    def read_times(self) -> TrainingTimes:
        """The times up to the last checkpoint; zeros if there are none."""
        try:
            return TrainingTimes.from_json(read_json(self.times, MAX_JSON_BYTES))
        except InputError:
            return TrainingTimes()

    def write_times(self, times: TrainingTimes) -> None:
        """Write `times.json`."""
        with atomic_write(self.times) as temporary:
            temporary.write_text(json.dumps(asdict(times)) + "\n", encoding="utf-8")

    def read_metrics(self) -> list[Record]:
        """The records of `metrics.jsonl`, one per step; see `read_records`."""
        return list(read_records(self.metrics))

    def write_metrics(self, records: list[Record]) -> None:
        """Replace all records of `metrics.jsonl`."""
        with atomic_write(self.metrics) as temporary:
            temporary.write_text("".join(json.dumps(r) + "\n" for r in records), encoding="utf-8")


def new_run(name: str, folder: Path | None, force: bool, code: Code = NO_CODE) -> Run:
    """Create the folder of a new run.

    Args:
        name: used if `folder` is None.
        code: see `Run`.
        folder: the folder; the first free one of runs/NAME, runs/NAME-2, … if None.
        force: allow a folder that is not empty.

    Raises:
        InputError: `folder` is a file, or is not empty and `force` is false.
        MDLSTMError: the folder cannot be created or written.
    """
    if folder is None:
        candidates = (RUNS / (name if k == 1 else f"{name}-{k}") for k in count(1))
        folder = next(candidate for candidate in candidates if not candidate.exists())
    elif folder.is_file():
        raise InputError(f"{folder} is a file, expected a folder for the run; give another one with -o")
    elif not force and not is_empty(folder):
        raise InputError(f"{folder} is not empty; give another folder with -o, or --force to train into it")
    with staging(folder):  # fails now rather than after the first steps
        return Run(folder, code)


def open_run(folder: Path, code: Code = NO_CODE) -> Run:
    """The run in `folder`.

    Args:
        folder: the run folder.
        code: see `Run`.

    Raises:
        InputError: there is no such folder, or it holds no checkpoint.
    """
    if not folder.is_dir():
        raise InputError(f"there is no run folder {folder}; create it with: mdlstm train -o {folder}")
    run = Run(folder, code)
    if not run.last.exists() and not run.best.exists():
        raise InputError(
            f"{folder} holds no checkpoint (best.safetensors or last.safetensors); "
            "give a folder that `mdlstm train` wrote"
        )
    return run


def latest_run(code: Code = NO_CODE) -> Run:
    """The run in runs/ with the newest checkpoint.

    Args:
        code: see `Run`.

    Raises:
        InputError: runs/ holds no run.
    """
    checkpoints = list(RUNS.glob("*/last.safetensors"))
    if not checkpoints:
        raise InputError("there is no run in runs/ here; create one with: mdlstm train")
    return Run(max(checkpoints, key=lambda path: path.stat().st_mtime_ns).parent, code)
