"""Sessions on CUDA, as far as a machine without a GPU can test them."""

from __future__ import annotations

import re
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest

from mdlstm_tk.errors import DeviceError, InputError
from mdlstm_tk.runtime import Session
from mdlstm_tk.runtime.cuda import cuda_problem
from mdlstm_tk.runtime.cuda_graph import CudaGraphRunner


def make_runner(model: Path) -> tuple[CudaGraphRunner, Any]:
    """A runner with buffers in CPU memory, where there are no graphs to capture, and its session."""
    session = onnxruntime.InferenceSession(model, providers=["CPUExecutionProvider"])
    return CudaGraphRunner(onnxruntime, session, "cpu", 0), session


def test_repeated_shapes_get_buffers_up_to_a_number(model: Path) -> None:
    runner, session = make_runner(model)
    rng = np.random.default_rng(0)
    results, graphs = [], []
    for batch in (2, 2, 2, 3, 2, 3, 3, 3, 2, *(batch for batch in range(4, 13) for _ in range(3))):
        x = rng.random((batch, 8, 8, 1), dtype=np.float32)
        options = onnxruntime.RunOptions()
        results.append((*runner({"x": x}, options), session.run(None, {"x": x})[0]))
        graphs.append(options.get_run_config_entry("gpu_graph_id"))
    for y, expected in results:  # compared at the end: no run may overwrite the result of another
        np.testing.assert_array_equal(y, expected)
    assert graphs[:9] == ["-1", "-1", "1", "-1", "1", "-1", "-1", "2", "1"]
    assert set(graphs[9:]) == {"-1", *map(str, range(3, 9))}


def test_the_order_of_an_array_in_memory_changes_nothing(model: Path) -> None:
    runner, session = make_runner(model)
    x = np.random.default_rng(0).random((2, 8, 8, 1), dtype=np.float32)
    for y in (runner({"x": each}, onnxruntime.RunOptions())[0] for each in (x, x, np.asfortranarray(x))):
        np.testing.assert_array_equal(y, session.run(None, {"x": x})[0])


def test_threads_may_share_a_runner(model: Path) -> None:
    runner, session = make_runner(model)
    inputs = np.random.default_rng(0).random((60, 1, 8, 8, 1), dtype=np.float32)

    def run(x: np.ndarray) -> np.ndarray:
        return runner({"x": x}, onnxruntime.RunOptions())[0]

    with ThreadPoolExecutor(8) as pool:
        for x, y in zip(inputs, pool.map(run, inputs), strict=True):
            np.testing.assert_array_equal(y, session.run(None, {"x": x})[0])


class FakeCUDA:
    """A fake onnxruntime that claims to have CUDA and runs everything on the CPU.

    Args:
        starts: what happens when a session asks for CUDA: "ok", "falls back" (silently to the CPU, as
            ONNX Runtime does where CUDA is missing), "no graphs" (refuses CUDA graphs) or "raises".
    """

    def __init__(self, starts: str) -> None:
        self.starts = starts
        self.requested: list[dict[str, int]] = []
        self.cuda_version = "13.0"

    def __getattr__(self, name: str) -> Any:
        return getattr(onnxruntime, name)

    def set_default_logger_severity(self, _: int) -> None:
        pytest.fail("the log level is the host program's")

    def get_available_providers(self) -> list[str]:
        return ["CUDAExecutionProvider", "CPUExecutionProvider"]

    def InferenceSession(self, data: bytes, options: Any, providers: list[Any], **_: Any) -> Any:  # noqa: N802
        session = onnxruntime.InferenceSession(data, options, providers=["CPUExecutionProvider"])
        if providers != ["CPUExecutionProvider"]:
            cuda_options = providers[0][1]
            self.requested.append(cuda_options)
            if self.starts == "raises" or (
                self.starts == "no graphs" and cuda_options["enable_cuda_graph"]
            ):
                raise RuntimeError("no")
            if self.starts != "falls back":
                session.get_providers = lambda: ["CUDAExecutionProvider", "CPUExecutionProvider"]
        return session


def install(starts: str, monkeypatch: pytest.MonkeyPatch) -> FakeCUDA:
    """Put the fake in the place of onnxruntime."""
    fake = FakeCUDA(starts)
    monkeypatch.setitem(sys.modules, "onnxruntime", fake)
    return fake


def test_cuda_is_used_with_the_requested_options(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fake = install("ok", monkeypatch)
    session = Session(model, "cuda:1")
    assert (session.device, session.provider, session.reason) == ("cuda:1", "CUDAExecutionProvider", None)
    assert fake.requested == [{"device_id": 1, "use_tf32": 0, "enable_cuda_graph": 1}]
    Session(model, "auto", tf32=True)
    assert fake.requested[1] == {"device_id": 0, "use_tf32": 1, "enable_cuda_graph": 1}


def test_a_model_that_cannot_be_captured_runs_without_graphs(
    model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake = install("no graphs", monkeypatch)
    session = Session(model, "cuda")
    assert session.device == "cuda:0"
    assert [options["enable_cuda_graph"] for options in fake.requested] == [1, 0]
    session.warm_up()


@pytest.mark.parametrize("device", ["gpu", "cuda:01", "cuda:1000", "cuda:\u0661", "cpu:0", ""])
def test_another_name_is_no_device(device: str, model: Path) -> None:
    with pytest.raises(InputError, match=f"^device must be auto, cpu, cuda or cuda:N, got '{device}'$"):
        Session(model, device)


@pytest.mark.parametrize("starts", ["falls back", "raises"])
def test_cuda_that_does_not_start_is_an_error_or_a_reason(
    starts: str, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    install(starts, monkeypatch)
    with pytest.raises(DeviceError, match=r"'cuda:2' .*; or pass device="):
        Session(model, "cuda:2")
    session = Session(model, "auto")
    assert (session.device, session.provider) == ("cpu", "CPUExecutionProvider")
    assert session.reason is not None and "CUDA 13" in session.reason
    assert ("(ONNX Runtime: no)" in session.reason) == (starts == "raises")
    with pytest.raises(InputError, match="the model"):
        Session(b"\x08\x07\x3a\x00", "cuda")


@pytest.mark.parametrize(
    ("absent", "message"),
    [
        (("libcuda.so.1", "libcudnn.so.9"), "libcuda.so.1 .*CUDA 13 and cuDNN 9"),
        (("libcudnn.so.9",), "CUDA 13 and cuDNN 9, .*libcudnn.so.9"),
        ((), "device 5, .*nvidia-smi"),
    ],
    ids=str,
)
@pytest.mark.skipif(sys.platform == "win32", reason="the libraries have other names")
def test_the_cuda_problem_is_named(
    absent: tuple[str, ...], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    module: Any = FakeCUDA("falls back")
    module._get_nvidia_dll_paths = lambda windows: [("nvidia", "libcudart.so.13"), ("n", "libcudnn.so.9")]

    def load(name: str) -> None:
        if name in absent:
            raise OSError(name)

    monkeypatch.setattr("ctypes.CDLL", load)
    assert re.search(message, cuda_problem(module, 5))
    assert "pip uninstall onnxruntime" in cuda_problem(onnxruntime) or (
        "CUDAExecutionProvider" in onnxruntime.get_available_providers()
    )
