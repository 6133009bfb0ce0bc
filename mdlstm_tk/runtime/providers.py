"""Starting ONNX Runtime: on the device that was asked for or not at all, and within limits."""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from mdlstm_tk.errors import DeviceError, InputError, require
from mdlstm_tk.runtime.cuda import preload, why_not

SILENT, WARNING = 4, 2  # ONNX Runtime's log levels
CUDA, CPU = "CUDAExecutionProvider", "CPUExecutionProvider"
MEMORY_SHARE = 0.75  # of the machine's memory, for all sessions of the process together


@dataclass(frozen=True)
class Started:
    """A session of ONNX Runtime.

    Attributes:
        session: it.
        cuda: index of the CUDA device that it runs on; None for the CPU.
        graphs: whether it can capture and replay CUDA graphs.
        reason: why "auto" did not take the CUDA that this onnxruntime has; else None.
    """

    session: Any
    cuda: int | None = None
    graphs: bool = False
    reason: str | None = None


def start(data: bytes, shown: str, device: str, threads: int, tf32: bool) -> Started:
    """Start a model that `check_model` has passed. Arguments and errors are those of `Session`."""
    onnxruntime = require("onnxruntime", "cpu")
    index = _cuda_index(device)
    _limit_memory()

    def on_cpu() -> Any:
        return _session(onnxruntime, data, threads, [CPU])

    if index is not None and CUDA in onnxruntime.get_available_providers():
        preload(onnxruntime)
        with _quiet(onnxruntime):
            for graphs in (True, False):  # not every model can be captured: Scan cannot
                options = {"device_id": index, "use_tf32": int(tf32), "enable_cuda_graph": int(graphs)}
                with contextlib.suppress(Exception):  # ONNX Runtime's exceptions share no base but this
                    session = _session(onnxruntime, data, threads, [(CUDA, options), CPU])
                    if session.get_providers()[0] != CUDA:
                        break
                    return Started(session, index, graphs)
    try:
        session = on_cpu()
    except Exception as error:
        raise InputError(f"{shown} is not a model that ONNX Runtime can load: {one_line(error)}") from None
    if index is None or (device == "auto" and CUDA not in onnxruntime.get_available_providers()):
        return Started(session)
    reason = why_not(onnxruntime, index)
    if device != "auto":
        raise DeviceError(f"device '{device}' cannot be used: {reason}; or use --device cpu")
    return Started(session, reason=reason)


def one_line(error: Exception) -> str:
    """What an error says, short and fit for a terminal, whatever names a model brought into it."""
    line = (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
    return "".join(character if character.isprintable() else "?" for character in line)


def _session(onnxruntime: Any, data: bytes, threads: int, providers: list[Any]) -> Any:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = SILENT
    # A sweep has nothing to fuse: unoptimised it loads twice as fast and runs as fast. And nothing in
    # the model is computed while it loads, where no time limit holds.
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.add_session_config_entry("session.load_model_format", "ONNX")  # the one that was checked
    options.add_session_config_entry("session.use_env_allocators", "1")
    # enable_fallback=0: no second try on the CPU behind our back, announced on stdout.
    return onnxruntime.InferenceSession(data, options, providers=providers, enable_fallback=0)


@cache
def _limit_memory() -> None:
    """Let ONNX Runtime take no more memory than there is, in this process and on the CPU.

    What a model computes may be far larger than what its file declares; with this it ends in an
    error, without it in the machine's out-of-memory killer.
    """
    onnxruntime = require("onnxruntime", "cpu")
    memory = _memory()
    if memory is None:
        return
    kind = onnxruntime.OrtAllocatorType.ORT_ARENA_ALLOCATOR
    place = onnxruntime.OrtMemoryInfo("Cpu", kind, 0, onnxruntime.OrtMemType.DEFAULT)
    config = onnxruntime.OrtArenaCfg({"max_mem": int(MEMORY_SHARE * memory)})
    with contextlib.suppress(Exception):  # the program around us has set limits of its own
        onnxruntime.create_and_register_allocator(place, config)


def _memory() -> int | None:
    """Bytes of memory of this machine, or of the container; None where that cannot be told."""
    try:
        memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, ValueError, OSError):
        return None
    for path in ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes"):
        with contextlib.suppress(OSError, ValueError):
            memory = min(memory, int(Path(path).read_text()))
    return memory


@contextlib.contextmanager
def _quiet(onnxruntime: Any) -> Iterator[None]:
    """Without ONNX Runtime's own messages, which a session's log level does not cover while CUDA starts."""
    onnxruntime.set_default_logger_severity(SILENT)
    try:
        yield
    finally:
        onnxruntime.set_default_logger_severity(WARNING)


def _cuda_index(device: str) -> int | None:
    """The CUDA device that a device name stands for, None for the CPU.

    Raises:
        InputError: it is no device name.
    """
    if device == "cpu":
        return None
    match = re.fullmatch(r"auto|cuda(?::(\d{1,3}))?", device)
    if match is None:
        raise InputError(f"device must be auto, cpu, cuda or cuda:N, got '{device}'")
    return int(match[1] or 0)
