"""Run folders to mutate: a tiny run of each kind of task with its exports and its data."""

from __future__ import annotations

import os
import shutil
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from helpers import user_data

from fuzz.command import run_command

KINDS = ("diagonal", "grid", "classify", "segment", "transcribe", "arrays")
TINY = ("--steps", 4, "--hidden", 2, "--batch-size", 4, "--device", "cpu", "--set", "evaluate_every=2")


def write_run_seeds(folder: Path, kinds: Sequence[str] = KINDS, with_reports: bool = False) -> None:
    """Train and export; the runs are in runs/KIND, and their data in data/KIND.

    Args:
        folder: where to; it is created.
        kinds: some of `KINDS`.
        with_reports: whether each run folder has a report, too.
    """
    data = folder / "data"
    data.mkdir(parents=True)
    before = Path.cwd()
    os.chdir(folder)  # a run names its data relative to the current folder
    try:
        for kind in kinds:
            _write_run(kind, with_reports)
    finally:
        os.chdir(before)


def _write_run(kind: str, with_report: bool) -> None:
    data = Path("data", kind)
    options: list[object] = ["--task", kind, "--data", data]
    if kind == "diagonal":
        data.mkdir()
        np.save(data / "x.npy", np.eye(4, dtype=np.float32))
        options = ["--task", "diagonal", "--size", "4"]
    elif kind == "grid":
        user_data.write_targets(data)
    elif kind == "classify":
        user_data.write_classes(data, {"cat": 6, "dog": 6, "é [b]": 6})
    elif kind == "segment":
        user_data.write_masks(data)
        (data / "classes.txt").write_text("ground\nroad\n")
    elif kind == "transcribe":
        user_data.write_texts(data, 6)
    else:
        data.mkdir()
        user_data.write_arrays(data / "train.npz", "classify")
        options[1] = "classify"
    run = Path("runs", kind)
    _succeed("train", *options, *TINY, "-o", run)
    _succeed("export", run, "--form", "scan")
    if with_report:
        _succeed("report", run)
    shutil.rmtree(run / "tensorboard", ignore_errors=True)


def _succeed(*arguments: object) -> None:
    called = run_command(arguments)
    if called.code:
        raise RuntimeError(f"cannot make the corpus: {called.err}")
