"""Exports later on: their run has gone on, or they are verified again; names, and runs of mixed sizes."""

from __future__ import annotations

import json
import shlex
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import safetensors.torch
from helpers.command import mdlstm, succeed
from helpers.training import quick, run_in
from helpers.user_data import write_masks

from mdlstm_tk import MDLSTM
from mdlstm_tk.errors import InputError
from mdlstm_tk.export import export_onnx, export_run, verify_model
from mdlstm_tk.export.staleness import note_if_stale
from mdlstm_tk.runtime import Session
from mdlstm_tk.training import Run

GONE_ON = "the run has gone on since "


def going_on(trained: Run, folder: Path) -> Run:
    """A copy of a run whose weights have changed since its exports."""
    run = Run(folder)
    shutil.copytree(trained.folder, folder)
    with safetensors.safe_open(run.best, "pt") as file:
        metadata, tensors = file.metadata(), {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    for path, factor in ((run.best, 1.1), (run.last, 1.2)):
        scaled = {name: factor * tensor for name, tensor in tensors.items()}
        safetensors.torch.save_file(scaled, path, metadata)
    return run


@pytest.fixture
def continued(trained: Run, tmp_path: Path) -> Run:
    return going_on(trained, tmp_path / "a run")


def test_info_and_verify_say_that_the_run_has_gone_on(trained: Run, continued: Run) -> None:
    for run, is_stale in ((trained, False), (continued, True)):
        model = run.folder / "model-8x8.onnx"
        described = succeed("info", run.folder)
        verified = mdlstm("verify", model, "--seeds", "1", "--device", "cpu")
        for text in (described.err, verified.err):
            assert text.count(GONE_ON) == is_stale
        assert verified.code == (3 if is_stale else 0)
    (warning,) = (line for line in described.err.splitlines() if GONE_ON in line)
    succeed(*shlex.split(warning.partition("mdlstm ")[2]))
    assert verify_model(model, device="cpu", seeds=1).failed == []
    assert GONE_ON not in succeed("info", continued.folder).err


@pytest.mark.parametrize(
    "options",
    [
        {"grid": (2, 3), "dtype": "float16"},
        pytest.param({"form": "scan", "grid": (4, None)}, marks=pytest.mark.slow),
        pytest.param({"form": "scan", "multiple_of": 2}, marks=pytest.mark.slow),
        pytest.param({"form": "tiles"}, marks=pytest.mark.slow),
    ],
    ids=str,
)
def test_the_advised_command_makes_the_same_file_of_the_new_weights(
    options: dict[str, Any], trained: Run, tmp_path: Path
) -> None:
    path = export_run(trained, tmp_path, **options).path
    described = succeed("info", path, "--json").out
    run = going_on(trained, tmp_path / "run")
    copied = Path(shutil.copy(path, run.folder))
    succeed(*shlex.split(note_if_stale(copied).partition("mdlstm ")[2]))
    old, new = json.loads(described), json.loads(succeed("info", copied, "--json").out)
    changed = {name for name in old if old[name] != new[name]}
    assert {"checkpoint_sha256"} <= changed <= {"checkpoint_sha256", "parity", "bytes"}


def test_an_export_of_the_last_checkpoint_is_compared_with_that(continued: Run) -> None:
    path = export_run(continued.last, continued.folder / "last.onnx", grid=(3, 4)).path
    assert continued.last.read_bytes() != continued.best.read_bytes()
    report = verify_model(path, device="cpu", seeds=1)
    assert report.failed == [] and report.stale == () and "last.safetensors" in report.reference


def test_a_density_model_is_verified(density_model: Path, density_run: Run, tmp_path: Path) -> None:
    report = verify_model(density_model, density_run, device="cpu", seeds=1)
    assert "graph in float64" in report.outcomes and report.failed == []
    older = onnx.load(density_model)  # as version 1 wrote it
    later = ("mdlstm.grids", "mdlstm.input_ranges")
    props = {prop.key: prop.value for prop in older.metadata_props if prop.key not in later}
    onnx.helper.set_model_props(older, props)
    onnx.save(older, tmp_path / "older.onnx")
    assert verify_model(tmp_path / "older.onnx", device="cpu", seeds=1).failed == []


def test_a_run_is_verified_on_values_like_those_of_its_data(tmp_path: Path) -> None:
    form: Any
    x = np.random.default_rng(0).normal([1000, -5], [1, 0.1], (12, 4, 5, 2))
    data = tmp_path / "diagonal.npz"  # which are not the samples of the task of that name
    np.savez(data, x=x, y=x[..., 0])
    run = run_in(tmp_path / "run", quick(data, "grid"))
    for form in (None, "tiles"):
        metadata = export_run(run, form=form).metadata
        assert (metadata.task, metadata.user_data) == ("diagonal", True)
        low, high = metadata.example_range or (0, 0)
        assert -6 < low < -5
        assert 1000 < high < 1005


def test_the_name_of_a_file_tells_its_form(trained: Run, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"form 'tiles' .*grid="):
        export_onnx(MDLSTM(1, 2), tmp_path / "m.tiles", grid=(3, 4))
    with pytest.raises(InputError, match=r"ends in \.tiles; got .*m\.tiles for form 'scan'"):
        export_onnx(MDLSTM(1, 2), tmp_path / "m.tiles", form="scan")
    with pytest.raises(InputError, match=r"ends in \.tiles; got .*m\.onnx for form 'tiles'"):
        export_run(trained, tmp_path / "m.onnx", form="tiles")
    assert list(tmp_path.iterdir()) == []
    assert export_run(trained, tmp_path / "m.tiles").metadata.form == "tiles"
    done = succeed("export", trained.folder, "--size", "*", "-o", tmp_path)
    assert (tmp_path / "model-any.onnx").exists(), done.err
    assert Session(tmp_path / "model-any.onnx", "cpu").metadata.grid is None


@pytest.mark.slow
def test_tiles_are_for_any_size_whatever_images_are_resized_to(tmp_path: Path) -> None:
    run = run_in(tmp_path / "run", quick(write_masks(tmp_path / "data"), "segment", resize="5x*"))
    assert export_run(run, tmp_path / "m.tiles").metadata.grid is None


@pytest.mark.slow
@pytest.mark.parametrize("settings", [{}, {"crop": "4"}], ids=["mixed", "cropped"])
def test_a_run_of_mixed_sizes_is_exported_for_any_size(settings: dict[str, Any], tmp_path: Path) -> None:
    run = run_in(tmp_path / "run", quick(write_masks(tmp_path / "data"), "segment", **settings))
    report = export_run(run)
    assert (report.path.name, report.metadata.form) == ("model-any.onnx", "scan")
    assert export_run(run, tmp_path, grid=(5, 8)).metadata.form == "unrolled"
