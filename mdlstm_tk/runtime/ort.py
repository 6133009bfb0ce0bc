"""A graph in ONNX Runtime, on the CPU or on CUDA."""

from __future__ import annotations

import ctypes
import sys
import threading
from collections.abc import Callable, Mapping
from contextlib import redirect_stdout, suppress
from functools import cache
from typing import Any

import numpy as np

from mdlstm_tk._util.sizes import parse_device
from mdlstm_tk.errors import DeviceError, InputError, MDLSTMError, require
from mdlstm_tk.io import Array

LOG_FATAL = 4  # ONNX Runtime's log level
CUDA, CPU = "CUDAExecutionProvider", "CPUExecutionProvider"
DTYPES = {"float": "float32", "double": "float64"}  # of NumPy, by ONNX Runtime's names
CONVOLUTION = b'"\x04Conv'  # a node of this type, as the file has it
MAX_GRAPHS = 8  # captured CUDA graphs; each keeps its device memory
LONG_VALUES = 2**14  # size of the inputs from which a run takes more than milliseconds


@cache
def _share_memory() -> None:
    """Let all graphs of this process share one arena: those of tiles would else keep their own peaks."""
    ort: Any = require("onnxruntime", "cpu")
    place = ort.OrtMemoryInfo("Cpu", ort.OrtAllocatorType.ORT_ARENA_ALLOCATOR, 0, ort.OrtMemType.DEFAULT)
    with suppress(Exception):  # the host program has registered one
        ort.create_and_register_allocator(place, None)


class Graph:
    """A graph that ONNX Runtime has loaded. Runs from several threads are concurrent, except on CUDA
    graphs.

    Args:
        data, label: an `.onnx` file that `check_model` has accepted, and its name in error messages.
        device: "auto" (CUDA if it works, else the CPU), "cpu", "cuda" or "cuda:N".
        threads: CPU threads of one run; 0: one per core.
        tf32: let CUDA round the inputs of matrix products to 10 bits of mantissa.

    Attributes:
        dtypes: NumPy's names of the dtypes of the inputs, by their names.
        outputs: names of the outputs.
        device: "cpu" or "cuda:N".
        reason: why "auto" did not take the CUDA that this ONNX Runtime supports; else None.
    """

    def __init__(self, data: bytes, label: str, device: str, threads: int = 1, tf32: bool = False) -> None:
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
        self._buffers: dict[Any, Any] | None = None  # of captured graphs, by the shapes of the inputs
        self._place = ("cuda", index)  # of their buffers
        self._lock = threading.Lock()
        self._previous: Any = None

        def load(*providers: Any) -> Any:
            # enable_fallback=0: ONNX Runtime would retry on the CPU on its own, and announce it on stdout.
            return ort.InferenceSession(data, options, providers=[*providers, CPU], enable_fallback=0)

        session, has_cuda = None, CUDA in ort.get_available_providers()
        if kind != "cpu" and has_cuda:
            with redirect_stdout(None), suppress(Exception):
                ort.preload_dlls()  # those that pip installed
            cuda = {"device_id": index, "use_tf32": int(tf32)}
            for graphs in (1, 0):  # some models cannot be captured, those with a Scan among them
                with suppress(Exception):  # ONNX Runtime's exceptions have no common base class
                    session = load((CUDA, {**cuda, "enable_cuda_graph": graphs}))
                    if session.get_providers()[0] == CUDA:
                        self.device, self._buffers = f"cuda:{index}", {} if graphs else None
                        break
        if kind != "cpu" and self.device == "cpu":
            self.reason = cuda_problem() if kind == "cuda" or has_cuda else None
            if kind == "cuda":
                hint = 'or use device="cpu" (--device cpu)'
                raise DeviceError(f"device '{device}' cannot be used: {self.reason}; {hint}")
            session = None
        try:
            self.session = session or load()
        except Exception as error:  # as above
            raise InputError(f"{label} is no model that ONNX Runtime can load: {_line(error)}") from None
        types = {each.name: each.type[len("tensor(") : -1] for each in self.session.get_inputs()}
        self.dtypes = {name: DTYPES.get(dtype, dtype) for name, dtype in types.items()}
        self.outputs = [each.name for each in self.session.get_outputs()]

    def __call__(self, feeds: Mapping[str, Array]) -> dict[str, Array]:
        """Compute all outputs, by name, from all inputs.

        Raises:
            MDLSTMError: ONNX Runtime fails.
        """
        options = self._ort.RunOptions()
        run = self._run if self._buffers is None else self._run_captured
        is_short = sum(x.size for x in feeds.values()) < LONG_VALUES
        try:
            if is_short or threading.current_thread() is not threading.main_thread():
                arrays = run(dict(feeds), options)
            else:
                arrays = _interruptible(lambda: run(dict(feeds), options), options)
        except Exception as error:  # as above
            shapes = ", ".join(f"{name} {x.shape}" for name, x in feeds.items())
            raise MDLSTMError(f"ONNX Runtime failed on {shapes}: {_line(error)}") from None
        return dict(zip(self.outputs, arrays, strict=True))

    def _run(self, feeds: dict[str, Array], options: Any) -> list[Array]:
        return self.session.run(None, feeds, options)  # type: ignore[no-any-return]

    def _run_captured(self, feeds: dict[str, Array], options: Any) -> list[Array]:
        """Run on buffers at fixed addresses where the shapes of the inputs repeat: ONNX Runtime captures a
        CUDA graph on the third run of a shape, and replays it on later ones."""
        shapes = tuple(x.shape for x in feeds.values())
        with self._lock:
            assert self._buffers is not None
            if buffers := self._buffers.get(shapes):
                inputs, outputs, binding, graph_id = buffers
                for name, x in feeds.items():
                    inputs[name].update_inplace(np.ascontiguousarray(x))
                options.add_run_config_entry("gpu_graph_id", graph_id)
                self.session.run_with_iobinding(binding, options)
                return [np.array(each.numpy()) for each in outputs]
            options.add_run_config_entry("gpu_graph_id", "-1")
            results = self._run(feeds, options)
            if shapes == self._previous and len(self._buffers) < MAX_GRAPHS:
                self._buffers[shapes] = self._allocate(feeds, results)
            self._previous = shapes
            return results

    def _allocate(self, feeds: Mapping[str, Array], results: list[Array]) -> Any:
        new, place = self._ort.OrtValue, self._place
        inputs = {name: new.ortvalue_from_numpy(x.copy(), *place) for name, x in feeds.items()}
        outputs = [new.ortvalue_from_shape_and_type(y.shape, y.dtype, *place) for y in results]
        binding = self.session.io_binding()
        for name, value in inputs.items():
            binding.bind_ortvalue_input(name, value)
        for name, value in zip(self.outputs, outputs, strict=True):
            binding.bind_ortvalue_output(name, value)
        return inputs, outputs, binding, str(len(self._buffers or ()) + 1)


def _interruptible(run: Callable[[], list[Array]], options: Any) -> list[Array]:
    """Run in another thread: Python handles Ctrl-C in the main thread alone, and not while that is in ONNX
    Runtime."""
    results, errors, finished = list[list[Array]](), list[BaseException](), threading.Event()

    def work() -> None:
        try:
            results.append(run())
        except BaseException as error:
            errors.append(error)
        finally:
            finished.set()

    threading.Thread(target=work).start()
    try:
        # Not `Thread.join`: if it is interrupted, Python before 3.13 takes the thread for ended.
        while not finished.wait(1.0):  # without a limit it cannot be interrupted on Windows
            pass
    except BaseException:
        options.terminate = True  # before its next operator
        finished.wait(1.0)
        raise
    if errors:
        raise errors[0]
    return results[0]


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
