"""The files that a run was trained on give `mdlstm infer` what they give torch in training."""

from __future__ import annotations

import dataclasses
import sys
from pathlib import Path

import pytest
from helpers.checkout import ROOT

from mdlstm_tk.runtime.io import IMAGE_SUFFIXES

sys.path.insert(0, str(ROOT / "benchmarks"))

import trial


@pytest.mark.slow
@pytest.mark.parametrize("name", trial.TRIALS)
def test_infer_gives_what_torch_gives_for_every_file(name: str, tmp_path: Path) -> None:
    rows = trial.run_trial(name, tmp_path, steps=10)
    assert [row for row in rows if not row.passed] == []
    expected = {*trial.TRIALS[name].file_types, *(("npz",) if "arrays" in name else ())}
    assert {row.file_type for row in rows} == expected


def test_the_trial_finds_files_that_differ() -> None:
    good = trial.Row("classify", "PNG L", files=2, read=2, difference=1e-6, agreeing=2)
    assert good.passed
    for name, value in {"read": 1, "difference": 2e-5, "agreeing": 1, "files": 3}.items():
        assert not dataclasses.replace(good, **{name: value}).passed
    assert not dataclasses.replace(good, difference=float("nan")).passed


def test_the_trial_has_every_suffix(tmp_path: Path) -> None:
    data = trial.write_data("classify", tmp_path, list(trial.IMAGE_TYPES), 1)
    assert {path.suffix.lower() for _, path, _ in data.files} == set(IMAGE_SUFFIXES)
