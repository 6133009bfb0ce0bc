"""`export --server-repo`: the repository, parsed with the protobuf of NVIDIA Triton Inference Server."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from google.protobuf import text_format
from helpers.command import succeed
from onnx import TensorProto, helper
from tritonclient.grpc import model_config_pb2

from mdlstm_tk.errors import InputError, MDLSTMError
from mdlstm_tk.export import export_run_sizes
from mdlstm_tk.export.targets import ServerRepository, write_server_repo
from mdlstm_tk.runtime.preprocessing import Preprocessing
from mdlstm_tk.training import Run

BATCHED: list[object] = ["batch", 5, 8, 1]


def read(config: Path) -> model_config_pb2.ModelConfig:
    return text_format.Parse(config.read_text(encoding="utf-8"), model_config_pb2.ModelConfig())


def save(
    path: Path,
    shape: list[object],
    kind: int = TensorProto.FLOAT,
    sizes: bool = False,
    preprocessing: Preprocessing | None = None,
) -> Path:
    """A model that returns x, with an unused input `sizes` if `sizes` is true."""
    inputs = [helper.make_tensor_value_info("x", kind, shape)]
    if sizes:
        inputs.append(helper.make_tensor_value_info("sizes", TensorProto.INT64, ["batch", 2]))
    outputs = [helper.make_tensor_value_info("y", kind, shape)]
    graph = helper.make_graph([helper.make_node("Identity", ["x"], ["y"])], "identity", inputs, outputs)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    value = json.dumps(preprocessing and preprocessing.to_json())
    helper.set_model_props(model, {"mdlstm.preprocessing": value})
    onnx.save(model, str(path))
    return path


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_the_settings_describe_the_inputs_and_outputs(trained: Run, tmp_path: Path) -> None:
    done = succeed(
        "export", trained.folder, "--server-repo", "served", "--size", "8", "--size", "5x7", cwd=tmp_path
    )
    assert f"next: tritonserver --model-repository={tmp_path / 'served'}" in done.err
    assert names(tmp_path / "served") == ["md-8x8", "md-8x8-5x7"]
    for name, grid in (("md-8x8", [8, 8]), ("md-8x8-5x7", [5, 7])):
        folder = tmp_path / "served" / name
        config = read(folder / "config.pbtxt")
        assert (config.name, config.backend) == (name, "onnxruntime")
        assert config.max_batch_size > 1
        assert config.HasField("dynamic_batching")
        assert list(config.input[0].dims) == [*grid, 1]
        (cuda,) = config.optimization.execution_accelerators.gpu_execution_accelerator
        assert (cuda.name, dict(cuda.parameters)) == ("cuda", {"use_tf32": "0"})
        session = onnxruntime.InferenceSession((folder / "1/model.onnx").read_bytes())
        feeds = {tensor.name: np.zeros((3, *tensor.dims), np.float32) for tensor in config.input}
        outputs = session.run([tensor.name for tensor in config.output], feeds)
        assert [list(y.shape) for y in outputs] == [[3, *tensor.dims] for tensor in config.output]


def test_free_extents_sizes_and_float16(tmp_path: Path) -> None:
    model = save(tmp_path / "m.onnx", ["batch", "H", "W", 3], TensorProto.FLOAT16, sizes=True)
    write_server_repo(model, tmp_path / "served", "any")
    config = read(tmp_path / "served/any/config.pbtxt")
    assert [(p.name, p.data_type, list(p.dims)) for p in config.input] == [
        ("x", model_config_pb2.TYPE_FP16, [-1, -1, 3]),
        ("sizes", model_config_pb2.TYPE_INT64, [2]),
    ]
    assert [list(p.dims) for p in config.output] == [[-1, -1, 3]]


def test_a_second_export_adds_a_version_and_keeps_the_settings(tmp_path: Path) -> None:
    first = save(tmp_path / "m.onnx", BATCHED)
    repository = tmp_path / "served"
    assert write_server_repo(first, repository, "m") == repository / "m/1/model.onnx"
    config = repository / "m/config.pbtxt"
    edited = (
        config.read_text().replace("max_batch_size: 64", "max_batch_size: 7").replace("  dims", " dims")
    )
    config.write_text(edited + "instance_group [ { count: 2 kind: KIND_CPU } ]\n")
    settings = config.read_text()
    (repository / "m/9").mkdir()  # a version that another program added
    (repository / "m/configs").mkdir()
    second = save(tmp_path / "n.onnx", BATCHED)
    assert write_server_repo(second, repository, "m") == repository / "m/10/model.onnx"
    assert config.read_text() == settings
    assert read(config).max_batch_size == 7
    assert names(repository / "m") == ["1", "10", "9", "config.pbtxt", "configs"]
    assert (repository / "m/1/model.onnx").read_bytes() == first.read_bytes()


def test_settings_for_other_inputs_are_replaced_only_with_force(tmp_path: Path) -> None:
    repository = tmp_path / "served"
    write_server_repo(save(tmp_path / "m.onnx", BATCHED), repository, "m")
    other = save(tmp_path / "n.onnx", ["batch", 8, 5, 1])
    with pytest.raises(InputError, match=r"config\.pbtxt.*n\.onnx.*force=True"):
        write_server_repo(other, repository, "m")
    assert names(repository / "m") == ["1", "config.pbtxt"]
    write_server_repo(other, repository, "m", force=True)
    assert list(read(repository / "m/config.pbtxt").input[0].dims) == [8, 5, 1]
    assert names(repository / "m") == ["1", "2", "config.pbtxt"]


def test_the_settings_tell_clients_how_images_are_prepared(tmp_path: Path) -> None:
    repository, shape = tmp_path / "served", ["batch", None, None, 3]
    write_server_repo(save(tmp_path / "plain.onnx", shape), repository, "plain")
    assert not read(repository / "plain/config.pbtxt").parameters
    model = save(tmp_path / "m.onnx", shape, preprocessing=Preprocessing(3, (9, 7)))
    for _ in range(2):  # the second version fits its own settings
        write_server_repo(model, repository, "m")
    value = read(repository / "m/config.pbtxt").parameters["mdlstm.preprocessing"].string_value
    assert Preprocessing.from_json(json.loads(value)) == Preprocessing(3, (9, 7))
    other = save(tmp_path / "n.onnx", shape, preprocessing=Preprocessing(3))
    with pytest.raises(InputError, match=r"config\.pbtxt"):
        write_server_repo(other, repository, "m")


def test_a_version_appears_completely_or_not_at_all(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = save(tmp_path / "m.onnx", BATCHED)
    renames = []

    def fails(source: Path, target: Path) -> None:
        renames.append((sorted(p.name for p in source.rglob("*")), target))
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "rename", fails)
        with pytest.raises(MDLSTMError, match=r"served: No space left"):
            write_server_repo(model, tmp_path / "served", "m")
    assert renames == [(["1", "config.pbtxt", "model.onnx"], tmp_path / "served/m")]
    assert list((tmp_path / "served").iterdir()) == []
    write_server_repo(model, tmp_path / "served", "m")
    monkeypatch.setattr(os, "rename", fails)
    with pytest.raises(MDLSTMError, match=r"m: No space left"):
        write_server_repo(model, tmp_path / "served", "m")
    assert renames[1] == (["model.onnx"], tmp_path / "served/m/2")
    assert names(tmp_path / "served/m") == ["1", "config.pbtxt"]


@pytest.mark.parametrize("name", ["", "a/b", "..", "-x", "ü", 'a"b'])
def test_names_that_the_server_does_not_take_are_refused(name: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=re.escape(f"'{name}'")):
        write_server_repo(save(tmp_path / "m.onnx", BATCHED), tmp_path / "served", name)
    assert not (tmp_path / "served").exists()


def test_files_that_the_server_does_not_take_are_refused(tmp_path: Path) -> None:
    path, repository = tmp_path / "m.onnx", tmp_path / "served"
    for content in (b"", b"\xff\xff no model"):
        path.write_bytes(content)
        with pytest.raises(InputError, match="ONNX"):
            write_server_repo(path, repository, "m")
    with pytest.raises(InputError, match=r"'x' .*\(1, 5, 8\)"):
        write_server_repo(save(path, [1, 5, 8]), repository, "m")
    with pytest.raises(InputError, match="'x' is float64"):
        write_server_repo(save(path, BATCHED, TensorProto.DOUBLE), repository, "m")
    assert not repository.exists()
    repository.write_text("")
    with pytest.raises(InputError, match=r"served is a file"):
        write_server_repo(save(path, BATCHED), repository, "m")


def test_a_free_extent_needs_no_form(trained: Run, tmp_path: Path) -> None:
    (report,) = export_run_sizes(trained, [(3, None)], ServerRepository(tmp_path / "served"))
    assert report.metadata.form == "scan" and report.path.parts[-3] == "md-8x8-3xany"
    assert list(read(tmp_path / "served/md-8x8-3xany/config.pbtxt").input[0].dims) == [3, -1, 1]
