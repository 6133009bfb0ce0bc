"""The child process of `IsolatedRunner`: it limits itself, loads graphs, and runs them on request."""

from __future__ import annotations

import os
import sys
import threading
import time
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any

from mdlstm_tk.errors import MDLSTMError, StoppedError, require
from mdlstm_tk.runtime.isolation import EXIT_MEMORY, Packet, receive, send
from mdlstm_tk.runtime.providers import CUDA
from mdlstm_tk.runtime.runner import LocalRunner

if sys.platform != "win32":
    import resource

THREAD_BYTES = 80 * 2**20  # the stack of a thread, and the address space that malloc reserves for it
WATCH_SECONDS = 0.05


def main(config: dict[str, Any]) -> None:
    """Answer the parent's requests: the first one loads the graphs, the others run one of them.

    Args:
        config: `parent`, the id of the parent process; `memory`, the bytes that this process may allocate
            from now on; and `threads`.
    """
    requests, replies = os.fdopen(0, "rb", 0), os.fdopen(os.dup(1), "wb", 0)
    os.dup2(2, 1)  # nothing else writes among the replies
    failure: Packet | None = None
    try:
        onnxruntime = require("onnxruntime", "cpu")
        _limit(config, has_cuda=CUDA in onnxruntime.get_available_providers())
    except Exception as error:  # the parent raises it; for example, ONNX Runtime is not installed
        failure = _error_reply(error)
    runner: LocalRunner | None = None
    try:
        while True:
            request, arrays = receive(requests, sys.maxsize)
            try:
                if failure is not None:
                    send(replies, failure)
                elif runner is None:
                    graphs = {name: data.tobytes() for name, data in arrays.items()}
                    runner = LocalRunner(graphs, request.pop("label"), **request)
                    infos = {name: asdict(info) for name, info in runner.graphs.items()}
                    facts = {"device": runner.device, "provider": runner.provider, "reason": runner.reason}
                    send(replies, {"graphs": infos, **facts})
                else:
                    outputs = runner.run(arrays, request["graph"])
                    send(replies, {}, outputs.items())
            except OSError:
                raise
            except Exception as error:
                send(replies, _error_reply(error))
    except MemoryError:  # while arrays were received or sent
        os._exit(EXIT_MEMORY)
    except (EOFError, OSError):
        os._exit(0)


def _error_reply(error: Exception) -> Packet:
    """The reply that stands for an exception."""
    if isinstance(error, MemoryError):
        error = StoppedError("out of memory", "memory")
    if not isinstance(error, MDLSTMError):
        error = MDLSTMError(f"the isolated process failed: {type(error).__name__}: {error}")
    return {
        "error": type(error).__name__,
        "message": MDLSTMError(error).args[0].parts,
        "cause": getattr(error, "cause", None),
    }


def _limit(config: dict[str, Any], *, has_cuda: bool) -> None:
    """Limit this process, which has imported its modules, and end it when its parent has gone."""
    resident_limit = None
    if sys.platform == "linux" and not has_cuda:
        stacks = THREAD_BYTES * (1 + config["threads"])
        _set_limit(resource.RLIMIT_AS, _statm()[0] + config["memory"] + stacks)
    else:
        resident_limit = _resident_bytes() + config["memory"]
    _set_limit(resource.RLIMIT_FSIZE, 0)
    _set_limit(resource.RLIMIT_CORE, 0)
    threading.Thread(target=_watch, args=(config["parent"], resident_limit), daemon=True).start()


def _set_limit(kind: int, value: int) -> None:
    """Limit this process for good, unless a stricter limit is set."""
    for limit in resource.getrlimit(kind):
        if limit != resource.RLIM_INFINITY:
            value = min(value, limit)
    with suppress(ValueError, OSError):  # the system has no such limit
        resource.setrlimit(kind, (value, value))


def _watch(parent: int, resident_limit: int | None) -> None:
    while True:
        if os.getppid() != parent:
            os._exit(0)
        if resident_limit is not None and _resident_bytes() > resident_limit:
            os._exit(EXIT_MEMORY)
        time.sleep(WATCH_SECONDS)


def _resident_bytes() -> int:
    if sys.platform == "darwin":
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    # ru_maxrss would be that of the parent if it was larger, as exec does not reset it
    return _statm()[1]


def _statm() -> tuple[int, int]:
    """Bytes of address space and of resident memory, on Linux."""
    pages = Path("/proc/self/statm").read_text().split()
    size = resource.getpagesize()
    return int(pages[0]) * size, int(pages[1]) * size
