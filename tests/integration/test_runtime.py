"""`Session`: shapes, errors, threads; and that the runtime needs neither torch nor onnx."""

from __future__ import annotations

import io
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import onnx
import pytest
from helpers.without_packages import TRAINING, python_without

from mdlstm_tk._util.installation import install_command
from mdlstm_tk.errors import InputError, MDLSTMError
from mdlstm_tk.export import export_onnx
from mdlstm_tk.models import create
from mdlstm_tk.runtime import Session, load_array, save_array


def test_shapes(model: Path) -> None:
    session = Session(model, "cpu")
    x = np.random.default_rng(0).random((5, 8, 8, 1), dtype=np.float32)
    y = session(x)
    assert y.shape == (5, 8, 8, 1)
    assert y.dtype == np.float32
    np.testing.assert_allclose(session(x[0]), y[0], atol=1e-6)
    np.testing.assert_allclose(session(x[0, ..., 0]), y[0, ..., 0], atol=1e-6)
    assert session(x[0]).shape == (8, 8, 1)
    assert session(x[0, ..., 0]).shape == (8, 8)
    assert (session.device, session.provider) == ("cpu", "CPUExecutionProvider")


def test_other_dtypes_are_converted(model: Path) -> None:
    session = Session(model, "cpu")
    x = np.eye(8)
    for dtype in (np.float64, np.float16, np.int32, np.uint8, bool):
        np.testing.assert_array_equal(session(x.astype(dtype)), session(x))


def test_several_channels_and_outputs(tmp_path: Path) -> None:
    report = export_onnx(create("md", 3, 2), tmp_path / "m.onnx", grid=(4, 5))
    session = Session(report.path, "cpu")
    x = np.random.default_rng(0).random((4, 5, 3), dtype=np.float32)
    assert session(x).shape == (4, 5, 2)
    with pytest.raises(InputError, match=r"1 channels .* 3"):
        session(x[..., 0])


@pytest.mark.parametrize(
    ("shape", "message"),
    [
        ((5, 7), "5x7 .* 8x8"),
        ((8,), r"\(8,\), expected \(H, W\), \(H, W, C\) or \(N, H, W, C\)"),
        ((1, 1, 8, 8, 1), "expected"),
        ((8, 8, 2), "2 channels"),
        ((0, 8, 8, 1), "empty"),
    ],
)
def test_shapes_that_do_not_fit_are_named(model: Path, shape: tuple[int, ...], message: str) -> None:
    with pytest.raises(InputError, match=message):
        Session(model, "cpu")(np.zeros(shape))


def test_a_closed_session_says_so(model: Path) -> None:
    with Session(model, "cpu") as session:
        session(np.zeros((8, 8)))
    with pytest.raises(MDLSTMError, match="closed"):
        session(np.zeros((8, 8)))


def test_foreign_and_broken_models_are_refused(model: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"none\.onnx"):
        Session(tmp_path / "none.onnx")
    broken = tmp_path / "broken.onnx"
    broken.write_bytes(model.read_bytes()[:1000])
    with pytest.raises(InputError, match=r"broken\.onnx"):
        Session(broken, "cpu")
    foreign = onnx.load(model)
    foreign.ClearField("metadata_props")
    onnx.save(foreign, tmp_path / "foreign.onnx")
    with pytest.raises(InputError, match=r"foreign\.onnx was not exported"):
        Session(tmp_path / "foreign.onnx", "cpu")
    with pytest.raises(InputError, match="'gpu'"):
        Session(model, "gpu")


def test_external_data_is_never_read(model: Path, tmp_path: Path) -> None:
    (tmp_path / "secret.bin").write_bytes(b"\0" * 4096)
    proto = onnx.load(model)
    tensor = next(t for t in proto.graph.initializer if t.data_type == onnx.TensorProto.FLOAT)
    tensor.ClearField("raw_data")
    tensor.data_location = onnx.TensorProto.EXTERNAL
    entry = tensor.external_data.add()
    entry.key, entry.value = "location", str(tmp_path / "secret.bin")
    (tmp_path / "m.onnx").write_bytes(proto.SerializeToString())
    with pytest.raises(InputError, match="outside the file"):
        Session(tmp_path / "m.onnx", "cpu")


@pytest.mark.parametrize("name", ["a.npy", "-"])
def test_arrays_survive_writing_and_reading(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    x = np.random.default_rng(0).random((3, 4), dtype=np.float32)
    stream = io.TextIOWrapper(io.BytesIO())
    monkeypatch.setattr(sys, "stdout", stream)
    target = name if name == "-" else str(tmp_path / name)
    save_array(target, x)
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(stream.buffer.getvalue())))
    np.testing.assert_array_equal(load_array(target), x)


def test_infer_runs_where_neither_torch_nor_onnx_can_be_imported(model: Path, tmp_path: Path) -> None:
    np.save(tmp_path / "matrix.npy", np.eye(8))
    code = "from mdlstm_tk.cli import main; main(sys.argv[1:])"
    done = python_without(TRAINING, code, "infer", "matrix.npy", "-m", model, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "cpu" in done.stderr
    assert np.load(tmp_path / "matrix.out.npy").shape == (8, 8)
    for arguments in (("info", model), ("--help",), ("infer", "--help")):
        assert python_without(TRAINING, code, *arguments, cwd=tmp_path).returncode == 0


@pytest.mark.parametrize("verb", ["train", "export", "verify", "compare", "demo"])
def test_verbs_that_need_torch_name_the_command_that_installs_it(verb: str, tmp_path: Path) -> None:
    code = "from mdlstm_tk.cli import main; main(sys.argv[1:])"
    arguments = [verb, "m.onnx"] if verb == "verify" else [verb]
    done = python_without(TRAINING, code, *arguments, cwd=tmp_path)
    assert done.returncode == 1
    assert done.stderr.strip().endswith(install_command(["train"]))
    assert "Traceback" not in done.stderr


def test_without_onnxruntime_infer_names_the_command_that_installs_it(model: Path, tmp_path: Path) -> None:
    np.save(tmp_path / "matrix.npy", np.eye(8))
    code = "from mdlstm_tk.cli import main; main(sys.argv[1:])"
    done = python_without(("onnxruntime",), code, "infer", "matrix.npy", "-m", model, cwd=tmp_path)
    assert done.returncode == 1
    assert install_command(["cpu"]) in done.stderr


def test_importing_the_package_imports_nothing_heavy(tmp_path: Path) -> None:
    code = "import mdlstm_tk, mdlstm_tk.runtime, mdlstm_tk.cli; print(sorted(set({!r}) & set(sys.modules)))"
    heavy = (*TRAINING, "onnxruntime")
    done = python_without((), code.format(heavy), cwd=tmp_path)
    assert done.stdout.strip() == "[]"
    done = python_without(("torch",), "import mdlstm_tk; mdlstm_tk.MDLSTM", cwd=tmp_path)
    assert install_command(["train"]) in done.stderr


def test_threads_may_share_a_session(model: Path) -> None:
    session = Session(model, "cpu", timeout=60)
    inputs = np.random.default_rng(0).random((40, 8, 8), dtype=np.float32)
    expected = [session(x) for x in inputs]
    with ThreadPoolExecutor(8) as pool:
        for y, z in zip(pool.map(session, inputs), expected, strict=True):
            np.testing.assert_array_equal(y, z)


def test_closing_while_others_run_harms_none(model: Path) -> None:
    session = Session(model, "cpu")
    x = np.random.default_rng(0).random((64, 8, 8, 1), dtype=np.float32)
    expected = session(x)

    def run(_: int) -> str:
        try:
            np.testing.assert_array_equal(session(x), expected)
        except MDLSTMError as error:
            return str(error)
        return "ran"

    with ThreadPoolExecutor(4) as pool:
        results = pool.map(run, range(400))
        assert next(results) == "ran"
        session.close()
        errors = set(results) - {"ran"}
        assert len(errors) == 1 and "closed" in errors.pop()


def test_threads_and_warm_up_change_no_number(model: Path) -> None:
    x = np.random.default_rng(0).random((3, 8, 8, 1), dtype=np.float32)
    expected = Session(model, "cpu")(x)
    for threads in (0, 1, 2):
        with Session(model, "cpu", threads=threads) as session:
            session.warm_up()
            session.warm_up(3)
            np.testing.assert_allclose(session(x), expected, atol=1e-6)
