"""`export_run` and `mdlstm export`: names of files, metadata, parity; and runs that have gone on since."""

from __future__ import annotations

import hashlib
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import safetensors.torch
from helpers.command import mdlstm, succeed
from helpers.layouts import write
from helpers.training import quick, run_in

from mdlstm_tk._util.sizes import format_size, parse_free_size
from mdlstm_tk.errors import InputError
from mdlstm_tk.export import export_run, float64_reference, runs, verify_model
from mdlstm_tk.runtime import Session
from mdlstm_tk.training import Run, load_checkpoint

GONE_ON = "the run has gone on since "


def test_a_trained_model_agrees_with_float64_at_any_size(trained: Run, model: Path, tmp_path: Path) -> None:
    metadata = Session(model, "cpu").metadata
    assert (metadata.grid, metadata.form, metadata.task) == ((8, 8), "unrolled", "diagonal")
    assert metadata.checkpoint_sha256 == hashlib.sha256(trained.checkpoint.read_bytes()).hexdigest()
    report = export_run(trained, tmp_path / "any.onnx", form="scan")
    assert report.bytes < 100_000 and report.metadata.grid is None
    assert report.as_dict()["bytes"] == report.path.stat().st_size
    session = Session(report.path, "cpu")
    reference = float64_reference(load_checkpoint(trained.best).network())
    for k, grid in enumerate([(8, 8), (1, 1), (1, 7), (7, 1), (5, 8), (32, 32)]):
        x = np.random.default_rng(k).random((2, *grid, 1), np.float32)
        np.testing.assert_allclose(session(x), reference(x), rtol=0, atol=1e-5)
    done = succeed(
        "verify", report.path, "--against", trained.folder, "--seed", "3", "--seeds", "1", "--json"
    )
    assert all(f'"{size}, seed 3"' in done.out for size in ("1x1", "1x7", "7x1", "5x8", "8x5"))


@pytest.mark.parametrize(("kind", "size"), [("classify", (5,)), ("grid", (3, 2, 4))])
def test_runs_of_any_axes_are_exported(kind: str, size: tuple[int, ...], tmp_path: Path) -> None:
    x = np.random.default_rng(0).random((8, *size), np.float32)
    y = x if kind == "grid" else np.arange(8) % 2
    np.savez(tmp_path / "x.npz", x=x, y=y, ndim=len(size))
    run = run_in(tmp_path / "run", quick(tmp_path / "x.npz", kind, steps=1, hidden=2))
    done = succeed("export", run.folder)
    assert f"model-{format_size(size)}.onnx" in done.err
    verify_model(run.folder, device="cpu", seeds=1).raise_if_failed()
    with pytest.raises(InputError):
        export_run(run, tmp_path, grid=(2, 2, 2, 2))


def test_names_of_files_tell_the_size(
    trained: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def record(network: Any, path: Path, **options: Any) -> Any:
        return path.name, options["form"], options["grid"]

    monkeypatch.setattr(runs, "export_onnx", record)
    for options, expected in (
        ({"padded": True}, ("model-8x8.onnx", "unrolled", (8, 8))),
        ({"grid": parse_free_size("2")}, ("model-2x2.onnx", "unrolled", (2, 2))),
        ({"grid": parse_free_size("*")}, ("model-any.onnx", "scan", (None, None))),
        ({"grid": (3, None)}, ("model-3xany.onnx", "scan", (3, None))),
        ({"form": "scan", "grid": (3, 4)}, ("model-any.onnx", "scan", (3, 4))),
        ({"form": "tiles"}, ("model.tiles", "tiles", None)),
        ({"path": tmp_path / "other.tiles"}, ("other.tiles", "tiles", None)),
    ):
        assert export_run(trained, **{"path": tmp_path, "force": True, **options}) == expected


def test_a_run_is_verified_on_values_like_those_of_its_data(tmp_path: Path) -> None:
    x = np.random.default_rng(0).normal([1000, -5], [1, 0.1], (12, 4, 5, 2))
    data = tmp_path / "diagonal.npz"  # which are not the samples of the task of that name
    np.savez(data, x=x, y=x[..., 0])
    run = run_in(tmp_path / "run", quick(data, "grid"))
    metadata = export_run(run).metadata
    assert (metadata.task, metadata.user_data, metadata.unit_range) == ("diagonal", True, False)
    low, high = metadata.example_range or (0, 0)
    assert -6 < low < -5
    assert 1000 < high < 1005


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


def test_info_and_verify_say_that_the_run_has_gone_on(trained: Run, tmp_path: Path) -> None:
    continued = going_on(trained, tmp_path / "a run")
    for run, is_stale in ((trained, False), (continued, True)):
        model = run.folder / "model-8x8.onnx"
        described = succeed("info", run.folder)
        verified = mdlstm("verify", model, "--seeds", "1", "--device", "cpu")
        for text in (described.err, verified.err):
            assert (GONE_ON in text) == is_stale
        assert verified.code == (3 if is_stale else 0)
    path = export_run(continued.last, continued.folder / "last.onnx", grid=(3, 4)).path
    sha256 = hashlib.sha256(continued.last.read_bytes()).hexdigest()
    assert Session(path, "cpu").metadata.checkpoint_sha256 == sha256
    report = verify_model(path, device="cpu", seeds=1)
    assert report.failed == [] and "last.safetensors" in report.reference
    with pytest.raises(InputError, match=r"none\.safetensors"):
        export_run(tmp_path / "none.safetensors", tmp_path / "m.onnx")


def test_a_density_model_is_verified(density_model: Path, density_run: Run, tmp_path: Path) -> None:
    report = verify_model(density_model, density_run, device="cpu", seeds=1)
    assert "graph in float64" in report.outcomes and report.failed == []
    older = onnx.load(density_model)  # as version 1 wrote it
    later = ("mdlstm.grids", "mdlstm.input_ranges")
    props = {prop.key: prop.value for prop in older.metadata_props if prop.key not in later}
    onnx.helper.set_model_props(older, props)
    onnx.save(older, tmp_path / "older.onnx")
    assert verify_model(tmp_path / "older.onnx", device="cpu", seeds=1).failed == []


@pytest.mark.slow
def test_a_run_of_mixed_sizes_is_exported_for_any_size(tmp_path: Path) -> None:
    run = run_in(tmp_path / "run", quick(write(tmp_path / "data", "segment", "folder"), "segment"))
    report = export_run(run)
    assert (report.path.name, report.metadata.form) == ("model-any.onnx", "scan")
    assert export_run(run, tmp_path, grid=(5, 8)).metadata.form == "unrolled"
