"""`export_run` and `mdlstm export`: names of files, metadata, and parity of a trained network."""

from __future__ import annotations

import hashlib
import shutil
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from helpers.training import quick, run_in
from helpers.user_data import write_classes

from mdlstm_tk.data.builtin.diagonal import DiagonalTask
from mdlstm_tk.errors import InputError
from mdlstm_tk.export import export_run, float64_reference, runs, verify_model
from mdlstm_tk.runtime import Session
from mdlstm_tk.training import Run, load_checkpoint
from mdlstm_tk.training.evaluation import on_device


def test_a_trained_model_agrees_with_float64_at_any_size(trained: Run, tmp_path: Path) -> None:
    report = export_run(trained, tmp_path / "any.onnx", form="scan")
    assert report.bytes < 100_000 and report.metadata.grid is None
    session = Session(report.path, "cpu")
    reference = float64_reference(load_checkpoint(trained.best).network())
    for k, grid in enumerate([(8, 8), (1, 1), (1, 7), (7, 1), (5, 8), (32, 32)]):
        x = np.random.default_rng(k).random((2, *grid, 1), np.float32)
        np.testing.assert_allclose(session(x), reference(x), rtol=0, atol=1e-5)
    task = DiagonalTask((32, 32))
    batch = on_device(task.batch(9, 0, 32), torch.device("cpu"))
    total, count = task.sums(torch.from_numpy(session(batch.x)), batch, task.spec)["relevant"]
    assert total / count < 0.01


def test_the_file_is_self_contained_and_has_standard_operators_and_metadata(
    model: Path, trained: Run
) -> None:
    proto = onnx.load(model)
    domains = {part.domain for part in (*proto.opset_import, *proto.graph.node)}
    assert domains == {""} and not proto.functions
    assert not any(tensor.external_data for tensor in proto.graph.initializer)
    dims = proto.graph.input[0].type.tensor_type.shape.dim
    assert [dim.dim_param or dim.dim_value for dim in dims] == ["batch", 8, 8, 1]
    assert any(node.name.startswith("body_0/wavefront_14/") for node in proto.graph.node)
    assert b"/site-packages/" not in model.read_bytes()
    metadata = Session(model, "cpu").metadata
    assert (metadata.grid, metadata.form, metadata.layout) == ((8, 8), "unrolled", "N H W C")
    assert (metadata.model, metadata.task) == ("md", "diagonal")
    assert metadata.checkpoint_sha256 == hashlib.sha256(trained.checkpoint.read_bytes()).hexdigest()
    assert 0 <= metadata.parity["max_abs"] < 1e-5


@pytest.mark.parametrize(
    ("options", "name"),
    [
        ({"grid": (2, 3)}, "model-2x3.onnx"),
        ({"grid": (2, None)}, "model-2xany.onnx"),
        ({"form": "scan"}, "model-any.onnx"),
        ({"form": "scan", "grid": (2, 3)}, "model-any.onnx"),
    ],
    ids=str,
)
def test_the_name_of_the_file_tells_the_size(
    options: dict, name: str, trained: Run, tmp_path: Path
) -> None:
    report = export_run(trained.folder, tmp_path, **options)
    assert report.path == tmp_path / name
    with pytest.raises(InputError, match=name.replace(".", r"\.")):
        export_run(trained, tmp_path, **options)
    export_run(trained, tmp_path, force=True, **options)
    assert report.as_dict()["bytes"] == report.path.stat().st_size


def test_the_form_is_that_of_a_path_that_is_given_and_not_of_the_folder_of_a_run(
    trained: Run, tmp_path: Path
) -> None:
    folder = shutil.copytree(trained.folder, tmp_path / "my.tiles", ignore=shutil.ignore_patterns("*.onnx"))
    assert export_run(folder).metadata.form == "unrolled"
    assert export_run(folder, path=tmp_path / "other.tiles").metadata.form == "tiles"


def test_export_run_takes_a_checkpoint_file(trained: Run, tmp_path: Path) -> None:
    report = export_run(trained.last, tmp_path / "m.onnx", grid=(3, 4))
    assert report.metadata.checkpoint_sha256 == hashlib.sha256(trained.last.read_bytes()).hexdigest()
    assert verify_model(report.path, trained.last, device="cpu", seeds=1).failed == []
    with pytest.raises(InputError, match=r"none\.safetensors"):
        export_run(tmp_path / "none.safetensors", tmp_path / "m.onnx")


def test_the_checksum_is_that_of_the_weights_also_if_training_replaces_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "best.safetensors"
    path.write_bytes(b"old")

    def load(path: Path) -> bytes:
        content = path.read_bytes()
        path.write_bytes(b"new")
        return content

    monkeypatch.setattr(runs, "load_checkpoint", load)
    content, sha256 = runs.read_checkpoint(path)
    assert (content, sha256) == (b"new", hashlib.sha256(b"new").hexdigest())


def test_a_size_that_no_sample_of_the_run_has_is_refused(tmp_path: Path) -> None:
    data = write_classes(tmp_path / "data", {"a": 4, "b": 4})
    run = run_in(tmp_path / "run", quick(data, "classify", resize="4x*", steps=1))
    for grid, fitting in (((5, 6), "4x6"), ((5, None), "4x\\*")):
        with pytest.raises(InputError, match=f"resizes every image to 4x.*export the size {fitting},"):
            export_run(run, tmp_path, grid=grid)
    assert not list(tmp_path.glob("*.onnx"))
    assert export_run(run, tmp_path, grid=(4, 6)).metadata.grid == (4, 6)


@pytest.mark.parametrize(
    ("x", "is_unit_range"),
    [
        ([0.0, 1.0, 1.0], True),  # the largest deviation that such numbers can have
        ([0.2, 0.3], True),
        ([0.5, 0.5], True),
        ([0.0, 100.0, 255.0], False),
        ([-1.0, 0.5, 2.0], False),
        ([-1.0, 0.9], False),
        ([-1.0, 1.0], False),  # standardised: its deviation is exactly 1
        ([7.0, 7.0], False),
    ],
)
def test_the_file_says_if_x_of_training_lay_outside_of_0_to_1(
    x: list[float], is_unit_range: bool, tmp_path: Path
) -> None:
    images = np.array(x * 6, np.float32)[:, None, None] * np.ones((4, 5), np.float32)
    data = tmp_path / "x.npz"
    np.savez(data, x=images, y=np.arange(len(images)) % 2)
    run = run_in(tmp_path / "run", quick(data, "classify", steps=1))
    assert export_run(run, form="scan").metadata.unit_range == is_unit_range
