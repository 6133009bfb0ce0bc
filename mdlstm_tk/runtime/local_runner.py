"""`LocalRunner`: a model that is loaded and run in this process."""

from __future__ import annotations

import threading
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Protocol

from mdlstm_tk.errors import MDLSTMError, StoppedError, require
from mdlstm_tk.runtime.cuda_graph import CudaGraphRunner
from mdlstm_tk.runtime.io.npy import Array
from mdlstm_tk.runtime.metadata import Metadata
from mdlstm_tk.runtime.metadata_checks import TensorType, check_agreement
from mdlstm_tk.runtime.providers import create_session, is_out_of_memory, one_line
from mdlstm_tk.runtime.security.interface import TensorSpec
from mdlstm_tk.runtime.security.model_check import check_model

NEVER = threading.Event()  # is not set; a run without a time limit does without an event of its own


class Runner(Protocol):
    """A loaded model, here or in another process.

    Attributes:
        props: the `metadata_props` of the file.
        output_names: the names of its outputs.
        device, provider, reason: as for `Session`.
        captures_graphs: whether repeated shapes are captured as CUDA graphs.
    """

    props: Mapping[str, str]
    output_names: list[str]
    device: str
    provider: str
    reason: str | None
    captures_graphs: bool

    def run(self, feeds: Mapping[str, Array]) -> dict[str, Array]:
        """Compute all outputs, by name, from all inputs.

        Raises:
            StoppedError: a limit on time or memory was reached, or the process of the model crashed.
            MDLSTMError: ONNX Runtime fails.
        """

    def close(self) -> None:
        """Release the model."""


class LocalRunner:
    """A model in this process, checked before ONNX Runtime loads it.

    Runs from several threads are concurrent, except with CUDA graphs.

    Args:
        data: content of the `.onnx` file.
        label: what error messages call the model.
        device, threads, timeout, max_bytes, tf32, trusted: as for `Session`.

    Raises:
        InputError: the model is refused, or ONNX Runtime cannot load it.
        DeviceError: CUDA was asked for and cannot be used.
        MissingExtraError: ONNX Runtime is not installed.
        StoppedError: the memory does not suffice to load it.
    """

    def __init__(
        self,
        data: bytes,
        label: str,
        device: str,
        *,
        threads: int,
        timeout: float | None,
        max_bytes: int,
        tf32: bool,
        trusted: bool = False,
    ) -> None:
        self._onnxruntime: Any = require("onnxruntime", "cpu")
        summary = None if trusted else check_model(data, label, max_bytes)
        if summary:
            inputs, outputs = _types(summary.inputs), _types(summary.outputs)
            check_agreement(Metadata.from_props(summary.metadata_props, label), inputs, outputs, label)
        created = create_session(data, label, device, threads, tf32)
        self._session: Any = created.session
        self._graph_runner: CudaGraphRunner | None = None
        if created.cuda_graphs and created.cuda_index is not None:
            self._graph_runner = CudaGraphRunner(
                self._onnxruntime, self._session, "cuda", created.cuda_index
            )
        self.captures_graphs = self._graph_runner is not None
        self.device = "cpu" if created.cuda_index is None else f"cuda:{created.cuda_index}"
        self.provider: str = self._session.get_providers()[0]
        self.reason = created.reason
        recorded: Mapping[str, str] = self._session.get_modelmeta().custom_metadata_map
        self.props: Mapping[str, str] = summary.metadata_props if summary else recorded
        self.output_names: list[str] = [tensor.name for tensor in self._session.get_outputs()]
        self._timeout = timeout

    def run(self, feeds: Mapping[str, Array]) -> dict[str, Array]:
        session, graph_runner = self._session, self._graph_runner
        with _time_limit(self._onnxruntime.RunOptions(), self._timeout) as (options, timed_out):
            try:
                arrays: list[Array] = (
                    session.run(None, feeds, options)
                    if graph_runner is None
                    else graph_runner(dict(feeds), options)
                )
            except Exception as error:  # ONNX Runtime's exceptions have no common base class
                if timed_out.is_set():
                    raise timed_out_error(self._timeout or 0) from None
                if is_out_of_memory(error):
                    raise StoppedError(
                        "the model needs more memory than there is; use a smaller batch or grid", "memory"
                    ) from None
                raise MDLSTMError(f"ONNX Runtime failed: {one_line(error)}") from None
        return dict(zip(self.output_names, arrays, strict=True))

    def close(self) -> None:
        """Nothing: the model is released with its last run."""


def _types(tensors: Iterable[TensorSpec]) -> dict[str, TensorType]:
    return {tensor.name: TensorType(tensor.dtype, tensor.shape) for tensor in tensors}


def timed_out_error(seconds: float) -> StoppedError:
    """The error for a run that took longer than allowed."""
    return StoppedError(f"the model was stopped after {seconds:g} s; allow more with --timeout", "time")


@contextmanager
def _time_limit(options: Any, timeout: float | None) -> Iterator[tuple[Any, threading.Event]]:
    """Yield RunOptions that stop a run after `timeout` seconds, and an event that is set if they did."""
    if timeout is None:
        yield options, NEVER
        return
    timed_out = threading.Event()

    def stop() -> None:
        timed_out.set()
        options.terminate = True

    timer = threading.Timer(timeout, stop)
    timer.daemon = True
    timer.start()
    try:
        yield options, timed_out
    finally:
        timer.cancel()
