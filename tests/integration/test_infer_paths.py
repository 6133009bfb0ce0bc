"""`infer_paths`: what `mdlstm infer` does, as a library call."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest

from mdlstm_tk import MDLSTM
from mdlstm_tk.errors import InputError
from mdlstm_tk.export import export_onnx
from mdlstm_tk.models import create
from mdlstm_tk.runtime import Session, infer_paths
from mdlstm_tk.runtime.postprocessing import probabilities

RNG = np.random.default_rng(0)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder of two inputs for an 8×8 model and one that does not fit."""
    folder = tmp_path / "in"
    folder.mkdir()
    for name, shape in {"a": (8, 8), "b": (3, 8, 8, 1), "bad": (5, 7)}.items():
        np.save(folder / f"{name}.npy", RNG.random(shape))
    return folder


def test_a_folder_gives_an_outcome_for_each_file(model: Path, folder: Path, tmp_path: Path) -> None:
    run = infer_paths([folder], model, tmp_path / "out", device="cpu")
    assert (run.model, run.device, run.single, run.skipped, len(run.jobs)) == (model, "cpu", False, 0, 3)
    errors = {Path(outcome.job.source).name: outcome.error for outcome in run.outcomes}
    assert errors.pop("bad.npy") is not None
    assert errors == {"a.npy": None, "b.npy": None}
    y = np.load(tmp_path / "out/a.out.npy")
    np.testing.assert_allclose(y, Session(model, "cpu")(np.load(folder / "a.npy")), atol=1e-6)
    again = infer_paths([folder], model, tmp_path / "out", device="cpu", skip_existing=True)
    assert (again.skipped, [Path(job.source).name for job in again.jobs]) == (2, ["bad.npy"])


def test_a_single_file_keeps_its_arrays_and_raises_its_errors(model: Path, folder: Path) -> None:
    run = infer_paths([folder / "a.npy"], model, device="cpu")
    assert run.single
    assert not (folder / "a.out.npy").exists()  # the work is done by iterating
    (outcome,) = run.outcomes
    assert outcome.inputs is not None and outcome.outputs is not None
    np.testing.assert_array_equal(outcome.outputs[None], np.load(folder / "a.out.npy"))
    assert outcome.inputs[None].shape == (8, 8)
    with pytest.raises(InputError, match="5x7"):
        list(infer_paths([folder / "bad.npy"], model, device="cpu").outcomes)


def test_arguments_that_contradict_each_other_are_refused(model: Path, folder: Path) -> None:
    for options in (
        {"skip_existing": True, "force": True},
        {"workers": 2},
        {"output": folder / "y.npy"},  # one file for the results of several
        {"probabilities": True},  # of a model without classes
    ):
        with pytest.raises(InputError):
            infer_paths([folder], model, device="cpu", **options)  # type: ignore[arg-type]


def test_probabilities_instead_of_labels(tmp_path: Path) -> None:
    network = create("md", 1, 3, kind="classify", hidden=4)
    metadata = {"kind": "classify", "classes": ("cat", "dog", "bird")}
    path = tmp_path / "m.onnx"
    export_onnx(network, path, form="scan", grid=None, channels=1, metadata=metadata)
    x = RNG.random((2, 5, 6, 1), dtype=np.float32)
    np.save(tmp_path / "x.npy", x)
    (outcome,) = infer_paths([tmp_path / "x.npy"], path, device="cpu", probabilities=True).outcomes
    written = np.load(tmp_path / "x.out.npy")
    np.testing.assert_allclose(written, probabilities(Session(path, "cpu")(x)), atol=1e-6)
    np.testing.assert_allclose(written.sum(axis=-1), 1, atol=1e-6)
    assert not outcome.answers


def test_a_newer_run_without_an_export_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name, time in (("old", 1_000), ("new", 2_000)):
        config = Path("runs") / name / "config.toml"
        config.parent.mkdir(parents=True)
        config.touch()
        os.utime(config, (time, time))
    export_onnx(MDLSTM(1, 2), Path("runs/old/model-8x8.onnx"), grid=(8, 8))
    np.save("x.npy", np.eye(8))
    run = infer_paths(["x.npy"], device="cpu")
    assert (run.model, run.newer_run) == (Path("runs/old/model-8x8.onnx"), Path("runs/new"))
    assert infer_paths(["x.npy"], run.model, device="cpu").newer_run is None
