"""A graph in ONNX Runtime, on the CPU or on CUDA."""

from __future__ import annotations

import ctypes
import sys
import threading
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import redirect_stdout, suppress
from functools import cache
from typing import Any

from mdlstm_tk._util.sizes import parse_device
from mdlstm_tk.errors import DeviceError, InputError, MDLSTMError, require
from mdlstm_tk.io import Array

LOG_FATAL = 4  # ONNX Runtime's log level
CUDA, CPU = "CUDAExecutionProvider", "CPUExecutionProvider"
DTYPES = {"float": "float32", "double": "float64"}  # of NumPy, by ONNX Runtime's names
CONVOLUTION = b'"\x04Conv'  # a node of this type, as the file has it
LONG_VALUES = 2**14  # size of the inputs from which a run takes more than milliseconds


@cache
def _share_memory() -> None:
    """Let all graphs of this process share one arena: those of tiles would else keep their own peaks."""
    ort: Any = require("onnxruntime", "cpu")
    place = ort.OrtMemoryInfo("Cpu", ort.OrtAllocatorType.ORT_ARENA_ALLOCATOR, 0, ort.OrtMemType.DEFAULT)
    with suppress(Exception):  # the host program has registered one
        ort.create_and_register_allocator(place, None)


class Graph:
    """A graph that ONNX Runtime has loaded. Runs from several threads are concurrent.

    Args:
        data, label: an `.onnx` file that `check_model` has accepted, and its name in error messages.
        device: "auto" (CUDA if it works, else the CPU), "cpu", "cuda" or "cuda:N".
        threads: CPU threads of one run; 0: one per core.

    Attributes:
        dtypes: NumPy's names of the dtypes of the inputs, by their names.
        outputs: names of the outputs.
        device: "cpu" or "cuda:N".
        reason: why "auto" did not take the CUDA that this ONNX Runtime supports; else None.
    """

    def __init__(self, data: bytes, label: str, device: str, threads: int = 1) -> None:
        ort: Any = require("onnxruntime", "cpu")
        kind, index = parse_device(device)
        options = ort.SessionOptions()
        options.intra_op_num_threads, options.log_severity_level = threads, LOG_FATAL
        # The optimiser fuses what stands around convolutions. In a sweep it finds nothing, and takes as
        # long as loading the model.
        levels = ort.GraphOptimizationLevel
        is_optimised = CONVOLUTION in data
        options.graph_optimization_level = levels.ORT_ENABLE_ALL if is_optimised else levels.ORT_DISABLE_ALL
        options.add_session_config_entry("session.load_model_format", "ONNX")  # as `check_model` read it
        options.add_session_config_entry("session.use_env_allocators", "1")
        _share_memory()
        self._ort, self.reason, self.device = ort, None, "cpu"

        def load(*providers: Any) -> Any:
            # enable_fallback=0: ONNX Runtime would retry on the CPU on its own, and announce it on stdout.
            return ort.InferenceSession(data, options, providers=[*providers, CPU], enable_fallback=0)

        session, has_cuda = None, CUDA in ort.get_available_providers()
        if kind != "cpu" and has_cuda:
            with redirect_stdout(None), suppress(Exception):
                ort.preload_dlls()  # those that pip installed
            with suppress(Exception):  # ONNX Runtime's exceptions have no common base class
                session = load((CUDA, {"device_id": index, "use_tf32": 0}))
                if session.get_providers()[0] == CUDA:
                    self.device = f"cuda:{index}"
        if kind != "cpu" and self.device == "cpu":
            self.reason = cuda_problem() if kind == "cuda" or has_cuda else None
            if kind == "cuda":
                hint = 'or use device="cpu" (--device cpu)'
                raise DeviceError(f"device '{device}' cannot be used: {self.reason}; {hint}")
        try:
            self.session = session or load()
        except Exception as error:  # as above
            raise InputError(f"{label} is no model that ONNX Runtime can load: {_line(error)}") from None
        types = {each.name: each.type[len("tensor(") : -1] for each in self.session.get_inputs()}
        self.dtypes = {name: DTYPES.get(dtype, dtype) for name, dtype in types.items()}
        self.outputs = [each.name for each in self.session.get_outputs()]

    def __call__(self, feeds: Mapping[str, Array]) -> dict[str, Array]:
        """Compute all outputs, by name, from all inputs."""
        options = self._ort.RunOptions()
        is_short = sum(x.size for x in feeds.values()) < LONG_VALUES
        try:
            if is_short or threading.current_thread() is not threading.main_thread():
                arrays = self.session.run(None, feeds, options)
            else:
                arrays = _interruptible(lambda: self.session.run(None, feeds, options), options)
        except Exception as error:  # as above
            shapes = ", ".join(f"{name} {x.shape}" for name, x in feeds.items())
            raise MDLSTMError(f"ONNX Runtime failed on {shapes}: {_line(error)}") from None
        return dict(zip(self.outputs, arrays, strict=True))


def _interruptible(run: Callable[[], list[Array]], options: Any) -> list[Array]:
    """Run in another thread: Python handles Ctrl-C in the main thread alone, and not while that is in ONNX
    Runtime."""
    executor = ThreadPoolExecutor(1)
    future = executor.submit(run)
    executor.shutdown(wait=False)
    try:
        while not wait([future], 1.0).done:  # without a limit it cannot be interrupted on Windows
            pass
    except BaseException:
        options.terminate = True  # before its next operator
        wait([future], 1.0)
        raise
    return future.result()


def cuda_problem() -> str:
    """The reason why ONNX Runtime cannot use CUDA."""
    if CUDA not in require("onnxruntime", "cpu").get_available_providers():
        return "this onnxruntime has no CUDA; pip uninstall onnxruntime, then pip install 'mdlstm-tk[gpu]'"
    try:
        ctypes.CDLL("nvcuda.dll" if sys.platform == "win32" else "libcuda.so.1")
    except OSError:
        return "there is no NVIDIA driver"
    return "CUDA or cuDNN does not load, or there is no such GPU; pip install 'onnxruntime-gpu[cuda,cudnn]'"


def _line(error: Exception) -> str:
    return " ".join(str(error).split())[:300]
