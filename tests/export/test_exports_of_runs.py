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
import torch
from helpers.command import mdlstm, succeed
from helpers.layouts import write
from helpers.training import quick, run_in

from mdlstm_tk._util.sizes import format_size, parse_free_size
from mdlstm_tk.data.builtin.diagonal import DiagonalTask
from mdlstm_tk.errors import InputError
from mdlstm_tk.export import export_run, float64_reference, runs, verify_model
from mdlstm_tk.runtime import Session
from mdlstm_tk.training import Run, load_checkpoint
from mdlstm_tk.training.evaluation import on_device

GONE_ON = "the run has gone on since "


def test_a_trained_model_agrees_with_float64_at_any_size(trained: Run, tmp_path: Path) -> None:
    report = export_run(trained, tmp_path / "any.onnx", form="scan")
    assert report.bytes < 100_000 and report.metadata.grid is None
    assert report.as_dict()["bytes"] == report.path.stat().st_size
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


SIZES = {1: (5,), 2: (3, 4), 3: (3, 2, 4)}


def train_on(folder: Path, kind: str, size: tuple[int, ...]) -> Run:
    x = np.random.default_rng(0).random((8, *size), np.float32)
    np.savez(folder / "x.npz", x=x, y=x if kind == "grid" else np.arange(8) % 2, ndim=len(size))
    return run_in(folder / "run", quick(folder / "x.npz", kind, steps=1, hidden=2))


@pytest.mark.parametrize(("kind", "ndim"), [("grid", 1), ("grid", 2), ("grid", 3), ("classify", 1)])
def test_runs_of_any_axes_are_exported_in_files_whose_names_tell_the_size(
    kind: str, ndim: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, size = train_on(tmp_path, kind, SIZES[ndim]), SIZES[ndim]
    own = f"model-{format_size(size)}.onnx"
    done = succeed("export", run.folder)
    assert own in done.err and not verify_model(run.folder, device="cpu", seeds=1).failed
    with pytest.raises(InputError, match="exists"):
        export_run(run)

    def record(network: Any, path: Path, **options: Any) -> Any:
        return path.name, options["form"], options["grid"]

    monkeypatch.setattr(runs, "export_onnx", record)
    of_two, row = (2,) * ndim, (*(3,) * (ndim - 1), None)
    for options, expected in (
        ({"grid": size}, (own, "unrolled", size)),
        ({"padded": True}, (own, "unrolled", size)),
        ({"grid": parse_free_size("2")}, (f"model-{format_size(of_two)}.onnx", "unrolled", of_two)),
        ({"grid": parse_free_size("*")}, ("model-any.onnx", "scan", (None,) * ndim)),
        ({"form": "scan"}, ("model-any.onnx", "scan", None)),
        ({"form": "scan", "grid": size}, ("model-any.onnx", "scan", size)),
        ({"form": "tiles"}, ("model.tiles", "tiles", None)),
    ):
        assert export_run(run, tmp_path, force=True, **options) == expected
    if ndim > 1:
        name = f"model-{format_size(row).replace('*', 'any')}.onnx"
        assert export_run(run, tmp_path, grid=row)[:2] == (name, "scan")
    with pytest.raises(InputError, match=f"as {format_size(size)}, got the grid 2x2x2x2"):
        export_run(run, tmp_path, grid=(2, 2, 2, 2))


def test_the_suffix_of_a_path_is_that_of_its_form(trained: Run, tmp_path: Path) -> None:
    for name, form in (("m.tiles", "scan"), ("m.onnx", "tiles")):
        with pytest.raises(InputError, match=rf"ends in \.tiles; got .*{name} for form '{form}'"):
            export_run(trained, tmp_path / name, form=form)  # type: ignore[arg-type]
    assert list(tmp_path.iterdir()) == []
    folder = shutil.copytree(trained.folder, tmp_path / "my.tiles", ignore=shutil.ignore_patterns("*.onnx"))
    assert export_run(folder).metadata.form == "unrolled"
    assert export_run(folder, path=tmp_path / "other.tiles").metadata.form == "tiles"


def test_a_checkpoint_is_exported_and_compared_with_that(trained: Run, tmp_path: Path) -> None:
    report = export_run(trained.last, tmp_path / "m.onnx", grid=(3, 4))
    assert report.metadata.checkpoint_sha256 == hashlib.sha256(trained.last.read_bytes()).hexdigest()
    assert verify_model(report.path, trained.last, device="cpu", seeds=1).failed == []
    with pytest.raises(InputError, match=r"none\.safetensors"):
        export_run(tmp_path / "none.safetensors", tmp_path / "m.onnx")


def test_a_run_is_verified_on_values_like_those_of_its_data(tmp_path: Path) -> None:
    form: Any
    x = np.random.default_rng(0).normal([1000, -5], [1, 0.1], (12, 4, 5, 2))
    data = tmp_path / "diagonal.npz"  # which are not the samples of the task of that name
    np.savez(data, x=x, y=x[..., 0])
    run = run_in(tmp_path / "run", quick(data, "grid"))
    for form in (None, "tiles"):
        metadata = export_run(run, form=form).metadata
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
    export_run(continued, model, force=True)
    assert verify_model(model, device="cpu", seeds=1).failed == []
    assert GONE_ON not in succeed("info", continued.folder).err
    path = export_run(continued.last, continued.folder / "last.onnx", grid=(3, 4)).path
    report = verify_model(path, device="cpu", seeds=1)
    assert report.failed == [] and "last.safetensors" in report.reference


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
@pytest.mark.parametrize("settings", [{}, {"crop": "4"}, {"resize": "5x*"}], ids=str)
def test_a_run_of_mixed_sizes_is_exported_for_any_size(settings: dict[str, Any], tmp_path: Path) -> None:
    run = run_in(
        tmp_path / "run", quick(write(tmp_path / "data", "segment", "folder"), "segment", **settings)
    )
    assert export_run(run, tmp_path / "m.tiles").metadata.grid is None
    if "resize" not in settings:
        report = export_run(run)
        assert (report.path.name, report.metadata.form) == ("model-any.onnx", "scan")
        assert export_run(run, tmp_path, grid=(5, 8)).metadata.form == "unrolled"
