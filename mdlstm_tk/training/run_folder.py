"""Run folders: `runs/NAME/` holds the configuration, checkpoints, metrics, pictures and result of a run."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import count
from pathlib import Path
from typing import Any

from mdlstm_tk._util.checks import checked, fit_argument
from mdlstm_tk._util.folders import is_empty, staging
from mdlstm_tk._util.text import to_json
from mdlstm_tk.data.spec import SPLITS, SampleId, Split
from mdlstm_tk.errors import InputError
from mdlstm_tk.io.files import open_output
from mdlstm_tk.kinds import kind_named, kind_names
from mdlstm_tk.training.progress import TrainingTimes

RUNS = Path("runs")
Record = dict[str, Any]  # "step", "loss", "lr", errors by name; "validation" of some: errors by name


class _File:
    """The path of a file in the folder of a `Run`."""

    def __init__(self, name: str) -> None:
        self.name = name

    def __get__(self, run: Run | None, owner: type[Run]) -> Path:
        return (run.folder if run else Path()) / self.name


@dataclass(frozen=True)
class Run:
    """The paths of a run's files.

    Attributes:
        folder: the run folder, a path or a text.

    Raises:
        InputError: the folder is neither.
    """

    folder: Path

    config = _File("config.toml")
    metrics = _File("metrics.jsonl")
    best = _File("best.safetensors")
    last = _File("last.safetensors")
    curves = _File("curves.png")
    prediction = _File("prediction.png")
    report = _File("report.html")
    result = _File("result.json")
    times = _File("times.json")
    samples = _File("samples.json")  # digests and names of the user's samples so far, by split

    def __post_init__(self) -> None:
        object.__setattr__(self, "folder", Path(fit_argument("folder", self.folder, str | Path)))

    @property
    def checkpoint(self) -> Path:
        """The best checkpoint, or the last one if training ended before the first validation."""
        return self.best if self.best.exists() else self.last

    @property
    def is_evaluated(self) -> bool:
        """True if result and pictures have been written since the last training step."""
        return all(path.exists() for path in (self.result, self.curves, self.prediction))

    def start(self, resume: bool) -> None:
        """Remove what training would make outdated.

        These are result, pictures and report, and, unless the run is resumed, all that belongs to the
        weights of an earlier run in this folder.
        """
        outdated = [self.result, self.curves, self.prediction, self.report]
        if not resume:
            outdated += [self.best, self.last, self.times, self.samples]
            outdated += [
                self.folder / name for kind in map(kind_named, kind_names()) for name in kind.run_files
            ]
        for path in outdated:
            path.unlink(missing_ok=True)

    def read_times(self) -> TrainingTimes:
        """The times up to the last checkpoint; zeros if there are none."""
        values = self.read_json(self.times)
        if values.keys() <= asdict(TrainingTimes()).keys() and all(map(_is_number, values.values())):
            return TrainingTimes(**values)
        raise InputError(f"{self.times} holds no times of a training; delete it to go on")

    def write_times(self, times: TrainingTimes) -> None:
        """Write `times.json`."""
        self.write(self.times, json.dumps(asdict(times)) + "\n")

    def read_samples(self) -> dict[Split, list[SampleId]] | None:
        """The samples that the run has had so far, by split; None if there are none.

        Raises:
            InputError: the file holds something else.
        """
        samples = self._read_sample_ids()
        return {split: samples[split] for split in SPLITS if split in samples} or None

    def read_learned(self) -> list[SampleId]:
        """The samples that the weights have learned, in this run or in that which they started from."""
        samples = self._read_sample_ids()
        return [*samples.get("train", ()), *samples.get("init", ())]

    def _read_sample_ids(self) -> dict[str, list[SampleId]]:
        """The content of `samples.json`; {} if there is none.

        Raises:
            InputError: the file holds something else.
        """
        values = self.read_json(self.samples)
        samples: dict[str, list[SampleId]]
        try:
            samples = {split: [SampleId(*each) for each in pairs] for split, pairs in values.items()}
        except TypeError:
            samples = {}
        if not all(isinstance(text, str) for ids in samples.values() for each in ids for text in each):
            samples = {}
        if values and "train" not in samples:
            raise InputError(f"{self.samples} holds no samples; delete it to go on without them")
        return samples

    def write_samples(
        self, samples: Mapping[Split, Sequence[SampleId]], learned: Sequence[SampleId] = ()
    ) -> None:
        """Write `samples.json`.

        Args:
            samples: those that the run has had so far, by split.
            learned: what `read_learned` returns; those that this run has not been trained on are "init".
        """
        trained = set(samples.get("train", ()))
        init = [each for each in dict.fromkeys(learned) if each not in trained]
        self.write(self.samples, json.dumps(dict(samples) | ({"init": init} if init else {})) + "\n")

    def read_result(self) -> dict[str, Any]:
        """The content of `result.json`; {} if there is none.

        Raises:
            InputError: it holds something else.
        """
        result = self.read_json(self.result)
        errors = result.get("errors", {})
        if not isinstance(errors, dict) or not all(map(_is_number_or_none, errors.values())):
            raise InputError(f"{self.result} holds no errors of a run; delete it to go on without it")
        return result | {"errors": _with_nan(errors)} if result else {}

    def write_result(self, result: Mapping[str, Any]) -> None:
        """Write `result.json`, in which NaN is null."""
        self.write(self.result, to_json(result, indent=2) + "\n")

    def read_metrics(self) -> list[Record]:
        """The records of `metrics.jsonl`, one per step; none if there is no file.

        The last line may be incomplete, as a killed process leaves it; it is left out.

        Raises:
            InputError: a line is no record.
        """
        if not self.metrics.exists():
            return []
        lines = self.metrics.read_bytes().split(b"\n")[:-1]
        try:
            records: list[Record] = [json.loads(line) for line in lines]
            if all(map(_is_record, records)):
                return [_with_nan(record) for record in records]
        except (ValueError, LookupError, TypeError, AttributeError, RecursionError):
            pass
        raise InputError(
            f"{self.metrics} holds a line that is no record of a step; delete the file to go on without "
            "the earlier steps"
        )

    def write_metrics(self, records: list[Record]) -> None:
        """Replace all records of `metrics.jsonl`."""
        self.write(self.metrics, "".join(to_json(record) + "\n" for record in records))

    @staticmethod
    def read_json(path: Path) -> dict[str, Any]:
        """The JSON object in a file; {} if there is no file.

        Raises:
            InputError: it holds something else.
        """
        if not path.exists():
            return {}
        try:
            values = json.loads(path.read_text(encoding="utf-8"))
        except (ValueError, RecursionError):
            values = None
        if not isinstance(values, dict):
            raise InputError(f"{path} holds no JSON object; delete it to go on without it")
        return values

    @staticmethod
    def write(path: Path, text: str) -> None:
        """Write a file, which appears whole or not at all."""
        with open_output(path) as file:
            file.write(text.encode())


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _is_number_or_none(value: object) -> bool:
    return value is None or _is_number(value)


def _is_record(record: Any) -> bool:
    """True if a value is what `Progress.record` returns, in which NaN may be None."""
    errors = dict(record)
    step, validation = errors.pop("step"), errors.pop("validation", {})
    return type(step) is int and all(map(_is_number_or_none, (*validation.values(), *errors.values())))


def _with_nan(errors: Mapping[str, Any]) -> dict[str, Any]:
    """Return errors by name, also those of "validation", with NaN instead of None."""
    return {
        name: _with_nan(value) if isinstance(value, dict) else math.nan if value is None else value
        for name, value in errors.items()
    }


def metric_names(records: Sequence[Mapping[str, Any]], best_by: str = "") -> list[str]:
    """The names of loss and errors in the records of `metrics.jsonl`; "loss" if there are no records.

    Args:
        records: of a run.
        best_by: the measure that chooses the best weights, which validations alone may have.
    """
    keys = dict.fromkeys(key for record in records for key in record) or {"loss": None}
    if any(best_by in record.get("validation", {}) for record in records):
        keys[best_by] = None
    return [key for key in keys if key not in ("step", "lr", "validation")]


@checked
def new_run(name: str, folder: str | Path | None, force: bool) -> Run:
    """Create the folder of a new run.

    Args:
        name: used if `folder` is None.
        folder: the folder; the first free one of runs/NAME, runs/NAME-2, … if None.
        force: allow a folder that is not empty.

    Raises:
        InputError: `folder` is a file, or is not empty and `force` is false.
        MDLSTMError: the folder cannot be created or written.
    """
    if folder is None:
        candidates = (RUNS / (name if k == 1 else f"{name}-{k}") for k in count(1))
        folder = next(filter(_claim, candidates))
    folder = Path(folder)
    if folder.is_file():
        raise InputError(f"{folder} is a file, expected a folder for the run; give another one")
    if not force and not is_empty(folder):
        raise InputError(
            f"{folder} is not empty; give another folder, or train into it with force=True (--force)"
        )
    with staging(folder):  # fails now rather than after the first steps
        return Run(folder)


def _claim(folder: Path) -> bool:
    """Create a folder; False if it exists, as another training may have created it just now."""
    try:
        folder.mkdir(parents=True)
    except FileExistsError:  # or runs/ is a link to nothing, which `new_run` tells
        return not os.path.lexists(folder)
    except OSError:  # `new_run` says why
        pass
    return True


@checked
def open_run(folder: str | Path) -> Run:
    """The run in `folder`.

    Raises:
        InputError: there is no such folder, or it holds no checkpoint.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise InputError(f"there is no run folder {folder}; give one that `mdlstm train` wrote")
    run = Run(folder)
    if not run.last.exists() and not run.best.exists():
        raise InputError(
            f"{folder} holds no checkpoint (best.safetensors or last.safetensors); "
            "give a folder that `mdlstm train` wrote"
        )
    return run


def latest_run() -> Run:
    """The run in runs/ with the newest checkpoint.

    Raises:
        InputError: runs/ holds no run.
    """
    checkpoints = list(RUNS.glob("*/last.safetensors"))
    if not checkpoints:
        raise InputError("there is no run in runs/ here; create one with: mdlstm train")
    return Run(max(checkpoints, key=lambda path: path.stat().st_mtime_ns).parent)
