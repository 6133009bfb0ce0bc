"""What an isolated child does: import, limit itself, then answer requests until its parent has gone."""

from __future__ import annotations

import json
import os
import socket
import sys
from collections.abc import Callable
from contextlib import suppress

from mdlstm_tk.errors import require
from mdlstm_tk.runtime.isolation import messages
from mdlstm_tk.runtime.isolation.limits import Limits, limit_cpu_time, limit_this_process
from mdlstm_tk.runtime.isolation.messages import Message
from mdlstm_tk.runtime.isolation.shared_file import SharedFile
from mdlstm_tk.runtime.local_runner import LocalRunner
from mdlstm_tk.runtime.providers import CUDA

Answer = Callable[[Message, list[int]], Message]


def main(config: str) -> None:
    """Answer the parent's requests. `ChildProcess` writes the configuration."""
    settings = json.loads(config)
    connection = socket.socket(fileno=settings["connection"])
    shared, limits = SharedFile(settings["shared_file"], is_mapped=True), Limits(**settings["limits"])
    answer: Answer
    try:
        answer = _Model(shared, limits)
        # Which device is wanted is known when the model is loaded, but limits hold from now on.
        limit_this_process(limits, settings["parent"], by_address_space=not _has_cuda())
    except Exception as error:  # the parent raises it; for example, ONNX Runtime is not installed
        messages.send(connection, messages.error_reply(error))
        return
    messages.send(connection, {})
    with suppress(EOFError, OSError):
        while True:
            request, descriptors = messages.receive_with_descriptors(connection)
            messages.send(connection, _reply(answer, request, descriptors))
    os._exit(0)


def _reply(answer: Answer, request: Message, descriptors: list[int]) -> Message:
    try:
        return answer(request, descriptors)
    except Exception as error:  # the parent raises it
        return messages.error_reply(error)
    finally:
        for descriptor in descriptors:
            os.close(descriptor)


class _Model:
    """Loads a model, then runs it."""

    def __init__(self, shared: SharedFile, limits: Limits) -> None:
        require("onnxruntime", "cpu")
        self._shared, self._limits = shared, limits
        self._runner: LocalRunner | None = None

    def __call__(self, request: Message, _: list[int]) -> Message:
        limits = self._limits
        if self._runner is None:
            limit_cpu_time(limits.cpu_seconds(limits.load_seconds))
            runner = self._runner = LocalRunner(
                self._shared.read_bytes(request["bytes"]),
                request["label"],
                request["device"],
                threads=limits.threads,
                timeout=limits.run_seconds,
                max_bytes=limits.max_bytes,
                tf32=request["tf32"],
            )
            return {
                "props": runner.props,
                "output_names": runner.output_names,
                "device": runner.device,
                "provider": runner.provider,
                "reason": runner.reason,
                "captures_graphs": runner.captures_graphs,
            }
        limit_cpu_time(limits.cpu_seconds(limits.run_seconds))
        feeds = {name or "": x for name, x in self._shared.read(request["inputs"], sys.maxsize)}
        outputs = self._runner.run(feeds)
        try:
            return {"outputs": self._shared.write(outputs.items())}
        except OSError:
            raise MemoryError from None


def _has_cuda() -> bool:
    return CUDA in sys.modules["onnxruntime"].get_available_providers()
