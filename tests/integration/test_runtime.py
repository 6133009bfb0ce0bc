"""The runtime: shapes in and out, what it refuses, and that it needs neither torch nor onnx."""

from __future__ import annotations

import io
import os
import re
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest

from mdlstm_tk.errors import DeviceError, InputError, MDLSTMError
from mdlstm_tk.export import export_onnx
from mdlstm_tk.models import create
from mdlstm_tk.runtime import Session, load_array, save_array
from mdlstm_tk.runtime.cuda import why_not
from mdlstm_tk.runtime.cuda_graph import BoundRuns

# An import hook that makes a process look as if these were not installed.
WITHOUT = """
import sys
class Gone:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in {names!r}:
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)
sys.meta_path.insert(0, Gone())
"""


def python_without(
    names: tuple[str, ...], code: str, *arguments: object, cwd: Path
) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", WITHOUT.format(names=names) + code, *map(str, arguments)]
    return subprocess.run(
        command, capture_output=True, text=True, cwd=cwd, check=False, env={**os.environ, "COLUMNS": "200"}
    )


TRAINING = ("torch", "onnx", "onnxscript", "numba", "safetensors", "matplotlib", "tomli_w")


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


def test_other_number_types_are_taken(model: Path) -> None:
    session = Session(model, "cpu")
    x = np.eye(8)
    for dtype in (np.float64, np.float16, np.int32, np.uint8, bool):
        np.testing.assert_array_equal(session(x.astype(dtype)), session(x))


def test_several_channels_and_outputs(tmp_path: Path) -> None:
    report = export_onnx(create("md", 3, 2), tmp_path / "m.onnx", grid=(4, 5))
    session = Session(report.path, "cpu")
    x = np.random.default_rng(0).random((4, 5, 3), dtype=np.float32)
    assert session(x).shape == (4, 5, 2)
    with pytest.raises(InputError, match="has 1 channels at each position, the model takes 3"):
        session(x[..., 0])


@pytest.mark.parametrize(
    ("shape", "message"),
    [
        ((5, 7), "a 5x7 grid does not fit this 8x8 model; make one with: mdlstm export --size 5x7"),
        ((8,), r"x has shape \(8,\), expected \(H, W\), \(H, W, C\) or \(N, H, W, C\)"),
        ((1, 1, 8, 8, 1), "expected"),
        ((8, 8, 2), "has 2 channels"),
        ((0, 8, 8, 1), "x is empty"),
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


def test_models_of_others_and_broken_ones_are_refused(model: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="there is no model"):
        Session(tmp_path / "none.onnx")
    broken = tmp_path / "broken.onnx"
    broken.write_bytes(model.read_bytes()[:1000])
    with pytest.raises(InputError, match="not a model that ONNX Runtime can load"):
        Session(broken, "cpu")
    foreign = onnx.load(model)
    foreign.ClearField("metadata_props")
    onnx.save(foreign, tmp_path / "foreign.onnx")
    with pytest.raises(InputError, match="was not exported by mdlstm-tk"):
        Session(tmp_path / "foreign.onnx", "cpu")
    with pytest.raises(InputError, match="device must be auto, cpu, cuda or cuda:N, got 'gpu'"):
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
    with pytest.raises(InputError, match="data lies outside the file, which is never read"):
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
    assert done.stderr.strip().endswith("pip install 'mdlstm-tk[train]'")
    assert "Traceback" not in done.stderr


def test_without_onnxruntime_infer_names_the_command_that_installs_it(model: Path, tmp_path: Path) -> None:
    np.save(tmp_path / "matrix.npy", np.eye(8))
    code = "from mdlstm_tk.cli import main; main(sys.argv[1:])"
    done = python_without(("onnxruntime",), code, "infer", "matrix.npy", "-m", model, cwd=tmp_path)
    assert done.returncode == 1
    assert "pip install 'mdlstm-tk[cpu]'" in done.stderr


def test_importing_the_package_imports_nothing_heavy(tmp_path: Path) -> None:
    code = "import mdlstm_tk, mdlstm_tk.runtime, mdlstm_tk.cli; print(sorted(set({!r}) & set(sys.modules)))"
    heavy = (*TRAINING, "onnxruntime")
    done = python_without((), code.format(heavy), cwd=tmp_path)
    assert done.stdout.strip() == "[]"
    done = python_without(("torch",), "import mdlstm_tk; mdlstm_tk.MDLSTM", cwd=tmp_path)
    assert "pip install 'mdlstm-tk[train]'" in done.stderr


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
        assert set(results) | {"ran"} == {
            "ran",
            "this session is closed; open the model again with Session(...)",
        }


def test_threads_and_warm_up_change_no_number(model: Path) -> None:
    x = np.random.default_rng(0).random((3, 8, 8, 1), dtype=np.float32)
    expected = Session(model, "cpu")(x)
    for threads in (0, 1, 2):
        with Session(model, "cpu", threads=threads) as session:
            session.warm_up()
            session.warm_up(3)
            np.testing.assert_allclose(session(x), expected, atol=1e-6)


def bound_runs(model: Path) -> tuple[BoundRuns, Any]:
    """Runs bound to buffers in the CPU's memory, where there are no graphs to capture; and the session."""
    session = onnxruntime.InferenceSession(model, providers=["CPUExecutionProvider"])
    return BoundRuns(onnxruntime, session, "cpu", 0), session


def test_bound_runs_keep_buffers_for_shapes_that_come_again(model: Path) -> None:
    bound, session = bound_runs(model)
    rng = np.random.default_rng(0)
    results, graphs = [], []
    for batch in (2, 2, 2, 3, 2, 3, 3, 3, 2):
        x = rng.random((batch, 8, 8, 1), dtype=np.float32)
        options = onnxruntime.RunOptions()
        results.append((bound({"x": x}, options), session.run(None, {"x": x})[0]))
        graphs.append(options.get_run_config_entry("gpu_graph_id"))
    for y, expected in results:  # after all have run: none may have overwritten another's
        np.testing.assert_array_equal(y, expected)
    assert graphs == ["-1", "-1", "1", "-1", "1", "-1", "-1", "2", "1"]


def test_bound_runs_keep_so_many_shapes_and_no_more(model: Path) -> None:
    bound, _ = bound_runs(model)
    graphs = set()
    for batch in range(1, 13):
        for _ in range(3):
            options = onnxruntime.RunOptions()
            bound({"x": np.zeros((batch, 8, 8, 1), np.float32)}, options)
            graphs.add(options.get_run_config_entry("gpu_graph_id"))
    assert graphs == {"-1", *map(str, range(1, 9))}


def test_threads_may_share_bound_runs(model: Path) -> None:
    bound, session = bound_runs(model)
    inputs = np.random.default_rng(0).random((60, 1, 8, 8, 1), dtype=np.float32)

    def run(x: np.ndarray) -> np.ndarray:
        return bound({"x": x}, onnxruntime.RunOptions())

    with ThreadPoolExecutor(8) as pool:
        for x, y in zip(inputs, pool.map(run, inputs), strict=True):
            np.testing.assert_array_equal(y, session.run(None, {"x": x})[0])


class FakeCUDA:
    """onnxruntime with CUDA, as far as starting a session goes: it all runs on the CPU.

    Args:
        starts: what becomes of a session that asks for CUDA: "ok", "falls back" (silently, to the CPU,
            as ONNX Runtime does where CUDA is missing), "no graphs" (refuses those) or "raises".
    """

    def __init__(self, starts: str) -> None:
        self.starts = starts
        self.asked: list[dict[str, int]] = []
        self.cuda_version = "13.0"

    def __getattr__(self, name: str) -> Any:
        return getattr(onnxruntime, name)

    def get_available_providers(self) -> list[str]:
        return ["CUDAExecutionProvider", "CPUExecutionProvider"]

    def InferenceSession(self, data: bytes, options: Any, providers: list[Any], **_: Any) -> Any:  # noqa: N802
        session = onnxruntime.InferenceSession(data, options, providers=["CPUExecutionProvider"])
        if providers != ["CPUExecutionProvider"]:
            asked = providers[0][1]
            self.asked.append(asked)
            if self.starts == "raises" or (self.starts == "no graphs" and asked["enable_cuda_graph"]):
                raise RuntimeError("no")
            if self.starts != "falls back":
                session.get_providers = lambda: ["CUDAExecutionProvider", "CPUExecutionProvider"]
        return session


@pytest.fixture
def fake(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> FakeCUDA:
    module = FakeCUDA(request.param)
    monkeypatch.setitem(sys.modules, "onnxruntime", module)
    return module


@pytest.mark.parametrize("fake", ["ok"], indirect=True)
def test_cuda_is_taken_as_it_was_asked_for(fake: FakeCUDA, model: Path) -> None:
    session = Session(model, "cuda:1")
    assert (session.device, session.provider, session.reason) == ("cuda:1", "CUDAExecutionProvider", None)
    assert fake.asked == [{"device_id": 1, "use_tf32": 0, "enable_cuda_graph": 1}]
    Session(model, "auto", tf32=True)
    assert fake.asked[1] == {"device_id": 0, "use_tf32": 1, "enable_cuda_graph": 1}


@pytest.mark.parametrize("fake", ["no graphs"], indirect=True)
def test_a_model_that_cannot_be_captured_runs_on_cuda_without_graphs(fake: FakeCUDA, model: Path) -> None:
    session = Session(model, "cuda")
    assert session.device == "cuda:0"
    assert [asked["enable_cuda_graph"] for asked in fake.asked] == [1, 0]
    session.warm_up()


@pytest.mark.parametrize("fake", ["falls back", "raises"], indirect=True)
def test_cuda_that_does_not_start_is_an_error_or_a_reason(fake: FakeCUDA, model: Path) -> None:
    with pytest.raises(DeviceError, match=r"device 'cuda:2' cannot be used: .*; or use --device cpu"):
        Session(model, "cuda:2")
    session = Session(model, "auto")
    assert (session.device, session.provider) == ("cpu", "CPUExecutionProvider")
    assert session.reason is not None and "CUDA 13" in session.reason
    with pytest.raises(InputError, match="not a model that ONNX Runtime can load"):
        Session(b"\x08\x07\x3a\x00", "cuda")


@pytest.mark.parametrize(
    ("absent", "message"),
    [
        (("libcuda.so.1", "libcudnn.so.9"), "there is no NVIDIA driver .*CUDA 13 and cuDNN 9"),
        (("libcudnn.so.9",), "needs CUDA 13 and cuDNN 9, of which libcudnn.so.9 cannot be loaded"),
        ((), "on device 5, though its libraries are there; look with nvidia-smi"),
    ],
    ids=str,
)
@pytest.mark.skipif(sys.platform == "win32", reason="its libraries have other names")
def test_why_cuda_does_not_start(
    absent: tuple[str, ...], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    module: Any = FakeCUDA("falls back")
    module._get_nvidia_dll_paths = lambda windows: [("nvidia", "libcudart.so.13"), ("n", "libcudnn.so.9")]

    def load(name: str) -> None:
        if name in absent:
            raise OSError(name)

    monkeypatch.setattr("ctypes.CDLL", load)
    assert re.search(message, why_not(module, 5))
    assert "this onnxruntime has no CUDA; pip uninstall onnxruntime" in why_not(onnxruntime) or (
        "CUDAExecutionProvider" in onnxruntime.get_available_providers()
    )
