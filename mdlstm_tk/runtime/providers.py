"""Create ONNX Runtime sessions on the requested device."""

from __future__ import annotations

import contextlib
import os
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from mdlstm_tk._util.text import reason_of
from mdlstm_tk.errors import Argument, DeviceError, InputError, StoppedError, require
from mdlstm_tk.runtime.choices import parse_device

LOG_FATAL = 4  # ONNX Runtime's log level
CUDA, CPU = "CUDAExecutionProvider", "CPUExecutionProvider"
OUT_OF_MEMORY = ("bfc_arena", "bad_alloc", "bad allocation")  # in the messages of its exceptions
MEMORY_SHARE = 0.75  # of the machine's memory, for all sessions of this process together


@dataclass(frozen=True)
class ProviderSession:
    """An `onnxruntime.InferenceSession`, and where it runs."""

    session: Any
    cuda_index: int | None = None  # of the CUDA device; None: the CPU
    cuda_graphs: bool = False  # it can capture and replay CUDA graphs
    reason: str | None = None  # why "auto" did not take the CUDA that this ONNX Runtime supports


def create_session(data: bytes, label: str, device: str, threads: int, tf32: bool) -> ProviderSession:
    """Load a model that `check_model` has accepted; `label` names it in error messages.

    Raises:
        InputError: ONNX Runtime cannot load the model, or `device` is unknown.
        DeviceError: CUDA was asked for and cannot be used.
        MissingExtraError: ONNX Runtime is not installed.
        StoppedError: the memory does not suffice.
    """
    onnxruntime = require("onnxruntime", "cpu")
    try:
        kind, number = parse_device(device)
    except InputError as error:
        raise InputError("device ", error) from None
    index = None if kind == "cpu" else number
    _limit_memory()
    has_cuda = CUDA in onnxruntime.get_available_providers()
    failure = ""
    if index is not None and has_cuda:
        from mdlstm_tk.runtime.cuda import preload_libraries  # imported late: for CUDA alone

        preload_libraries(onnxruntime)
        for graphs in (True, False):  # some models cannot be captured, those with a Scan among them
            options = {"device_id": index, "use_tf32": int(tf32), "enable_cuda_graph": int(graphs)}
            try:
                session = _inference_session(onnxruntime, data, threads, [(CUDA, options), CPU])
            except Exception as error:  # ONNX Runtime's exceptions have no common base class
                failure = reason_of(error)
                continue
            if session.get_providers()[0] != CUDA:
                break
            return ProviderSession(session, index, graphs)
    try:
        session = _inference_session(onnxruntime, data, threads, [CPU])
    except Exception as error:
        if is_out_of_memory(error):
            raise StoppedError(f"{label} needs more memory than there is to be loaded", "memory") from None
        raise InputError(f"{label} is not a model that ONNX Runtime can load: {reason_of(error)}") from None
    if index is None or (device == "auto" and not has_cuda):
        return ProviderSession(session)
    from mdlstm_tk.runtime.cuda import cuda_problem

    reason = f"{cuda_problem(onnxruntime, index)}{failure and f' (ONNX Runtime: {failure})'}"
    if device != "auto":
        advice = Argument("device", "cpu")
        raise DeviceError(f"device '{device}' cannot be used: {reason}; or pass ", advice)
    return ProviderSession(session, reason=reason)


def is_out_of_memory(error: Exception) -> bool:
    """True if ONNX Runtime failed because it could not allocate memory."""
    return isinstance(error, MemoryError) or any(sign in str(error) for sign in OUT_OF_MEMORY)


def _inference_session(onnxruntime: Any, data: bytes, threads: int, providers: list[Any]) -> Any:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = LOG_FATAL
    # Without optimisation a model loads twice as fast and runs as fast: the optimiser finds nothing to fuse
    # in a sweep and leaves its nodes as they are (`benchmarks/bench.py exports` measures both).
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    # `check_model` has read the bytes as ONNX; ONNX Runtime must not take them for its own format.
    options.add_session_config_entry("session.load_model_format", "ONNX")
    options.add_session_config_entry("session.use_env_allocators", "1")
    # enable_fallback=0: ONNX Runtime would retry on the CPU on its own and announce it on stdout.
    return onnxruntime.InferenceSession(data, options, providers=providers, enable_fallback=0)


@cache
def _limit_memory() -> None:
    """Limit the CPU memory that ONNX Runtime allocates in this process.

    A run that needs too much then ends in an error; without the limit, the system's out-of-memory killer
    would end a process of its choice.
    """
    onnxruntime = require("onnxruntime", "cpu")
    memory = available_memory()
    if memory is None:
        return
    kind = onnxruntime.OrtAllocatorType.ORT_ARENA_ALLOCATOR
    cpu_memory = onnxruntime.OrtMemoryInfo("Cpu", kind, 0, onnxruntime.OrtMemType.DEFAULT)
    config = onnxruntime.OrtArenaCfg({"max_mem": int(MEMORY_SHARE * memory)})
    with contextlib.suppress(Exception):  # the host program has registered an allocator already
        onnxruntime.create_and_register_allocator(cpu_memory, config)


def available_memory() -> int | None:
    """Bytes of memory of this machine or container; None if unknown."""
    try:
        memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, ValueError, OSError):
        return None
    for path in ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes"):
        with contextlib.suppress(OSError, ValueError):
            memory = min(memory, int(Path(path).read_text()))
    return memory
