"""`Runner`: one or several graphs that are loaded and run, in this process or in an isolated one."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple, Self, TypeAlias

from mdlstm_tk._util.text import reason_of
from mdlstm_tk.errors import TILED_EXPORT, Argument, InputError, MDLSTMError, Message, StoppedError, require
from mdlstm_tk.runtime.io.npy import Array, byte_limit
from mdlstm_tk.runtime.model_check import check_model
from mdlstm_tk.runtime.providers import create_session, is_out_of_memory

if TYPE_CHECKING:
    from mdlstm_tk.runtime.isolation import IsolatedRunner

MODEL = "model"  # the name of the only graph of an `.onnx` file
MAX_THREADS = 256
MAX_TIMEOUT = 1e6  # seconds, 11 days; the timers of the system take no more than a few weeks
INTERRUPTIBLE_VALUES = 2**14
"""Size of the inputs from which a run leaves the main thread: smaller ones are over within milliseconds,
and another thread costs some 50 µs."""


GraphFunction = Callable[[dict[str, Array], Any], list[Array]]
"""Runs a graph on its inputs under the given `RunOptions`."""


class TensorType(NamedTuple):
    """The type of an input or output of a graph: NumPy's name of the element type, such as "float32", or
    ONNX Runtime's if NumPy has none; and the extents, None where one is free."""

    dtype: str
    shape: tuple[int | None, ...]


@dataclass(frozen=True)
class GraphInfo:
    """Facts about a loaded graph: its `metadata_props`, and its inputs and outputs in the file's order."""

    props: dict[str, str]
    inputs: dict[str, TensorType]
    outputs: dict[str, TensorType]


Runner: TypeAlias = "LocalRunner | IsolatedRunner"
"""Loaded graphs: facts about each of them by its name, where they run, and why not on CUDA."""


class OpenModel:
    """Base of `Session` and `TiledSession`, whose docstrings name the attributes: an open model."""

    device: str
    provider: str
    reason: str | None
    isolated: bool
    graphs: Runner
    _arguments: tuple[bytes, dict[str, Any]]

    def _open(
        self, graphs: Mapping[str, bytes], label: str, device: str, *, isolated: bool, **options: Any
    ) -> Runner:
        """Check and load graphs, by name; `label` names the model in error messages. See `Session`.

        Raises:
            InputError: a graph is refused, or ONNX Runtime cannot load it; or an argument is invalid.
            DeviceError, MissingExtraError, StoppedError, MDLSTMError: as for `Session`.
        """
        threads, timeout = self._arguments[1]["threads"], options["timeout"]
        most = max(MAX_THREADS, os.cpu_count() or 1)  # ONNX Runtime would start more for minutes
        if not 0 <= threads <= most:
            raise InputError(
                f"threads must be from 1 to {most}, or 0 for one per core, got {threads}; "
                "one for each core is enough"
            )
        if timeout is not None and not 0 <= timeout <= MAX_TIMEOUT:
            raise InputError(f"timeout must be from 0 to {MAX_TIMEOUT:g} seconds, got {timeout}")
        if isolated:
            from mdlstm_tk.runtime.isolation import IsolatedRunner  # imported late: most models need none

            runner: Runner = IsolatedRunner(graphs, label, device=device, **options)
        else:
            runner = LocalRunner(graphs, label, device, **options)
        self.graphs = runner  # runs the graphs of the model by their names
        self.device, self.provider, self.reason = runner.device, runner.provider, runner.reason
        self.isolated = isolated
        return runner

    def close(self) -> None:
        """Release the model. Runs in progress finish, but in isolation they raise a `StoppedError`; later
        ones raise an `MDLSTMError`."""
        self.graphs.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __reduce__(self) -> tuple[Any, ...]:
        data, options = self._arguments
        return partial(type(self), **options), (data,)


class LocalRunner:
    """Graphs in this process. Arguments and errors are those of `OpenModel._open`.

    Runs from several threads are concurrent, except with CUDA graphs.
    """

    def __init__(self, graphs: Mapping[str, bytes], label: str, device: str, **options: Any) -> None:
        self._onnxruntime: Any = require("onnxruntime", "cpu")
        self._timeout: float | None = options["timeout"]
        limit, trusted = byte_limit(options["max_bytes"]), options["trusted"]
        self._active: set[Any] = set()  # the `RunOptions` of the runs in progress
        self._functions: dict[str, GraphFunction] = {}
        self.graphs: dict[str, GraphInfo] = {}
        self.device, self.provider = device, ""
        self.reason: str | None = None
        for name, data in graphs.items():
            graph_label = label if name == MODEL else f"{name} in {label}"
            props = check_model(data, graph_label, max_bytes=limit, trusted=trusted)
            loaded = create_session(data, graph_label, self.device, options["threads"], options["tf32"])
            session, index = loaded.session, loaded.cuda_index
            self.device = "cpu" if index is None else f"cuda:{index}"  # of the graphs that follow, too
            self.provider = session.get_providers()[0]
            self.reason = self.reason or loaded.reason
            self.graphs[name] = GraphInfo(
                props, _types(session.get_inputs()), _types(session.get_outputs())
            )
            self._functions[name] = partial(session.run, None)
            if loaded.cuda_graphs and index is not None:
                from mdlstm_tk.runtime.cuda_graph import CudaGraphRunner  # imported late: for CUDA alone

                self._functions[name] = CudaGraphRunner(self._onnxruntime, session, "cuda", index)

    def run(self, feeds: Mapping[str, Array], graph: str = MODEL) -> dict[str, Array]:
        """Compute all outputs of a graph, by name, from all its inputs.

        Raises:
            StoppedError: a limit on time or memory was reached, or the process of the model crashed.
            InputError: ONNX Runtime refuses the arrays.
            MDLSTMError: it fails.
            KeyboardInterrupt: the user pressed Ctrl-C; the run was stopped.
        """
        function = self._functions.get(graph)
        if function is None:
            raise MDLSTMError("this session is closed; open the model again")
        options = self._onnxruntime.RunOptions()
        timer = None if self._timeout is None else threading.Timer(self._timeout, _stop, (options,))
        self._active.add(options)
        try:
            if timer is not None:
                timer.daemon = True
                timer.start()
            arrays = _outputs(function, dict(feeds), options)
        except Exception as error:  # ONNX Runtime's exceptions have no common base class
            if options.terminate and self._timeout is not None:
                raise timeout_error(self._timeout) from None
            if is_out_of_memory(error):
                advice = "use a smaller batch or grid, or run the grid in tiles, with a model from: "
                text = "the model needs more memory than there is; ", advice
                raise StoppedError(Message(*text, TILED_EXPORT), "memory") from None
            failure = f"ONNX Runtime failed: {reason_of(error)}"
            # It refuses shapes, and numbers such as tokens, that the model does not take.
            is_refused = type(error).__name__ == "InvalidArgument"
            raise (InputError if is_refused else MDLSTMError)(failure) from None
        finally:
            if timer is not None:
                timer.cancel()
            self._active.discard(options)
        return dict(zip(self.graphs[graph].outputs, arrays, strict=True))

    def interrupt(self) -> None:
        """Stop the runs in progress, which raise."""
        for options in list(self._active):
            _stop(options)

    def close(self) -> None:
        """Release the graphs; later runs raise an `MDLSTMError`."""
        self._functions = {}


def _outputs(function: GraphFunction, feeds: dict[str, Array], options: Any) -> list[Array]:
    """Run a graph. Python handles Ctrl-C in the main thread alone, and not while that is in ONNX Runtime;
    so another thread does a long run, and the main thread waits. So does the interpreter before it ends: a
    thread that came back from ONNX Runtime later would abort the process."""
    is_short = sum(x.size for x in feeds.values()) < INTERRUPTIBLE_VALUES
    if is_short or threading.current_thread() is not threading.main_thread():
        return function(feeds, options)
    outputs, errors, finished = list[Array](), list[BaseException](), threading.Event()

    def run() -> None:
        try:
            outputs.extend(function(feeds, options))
        except BaseException as error:
            errors.append(error)
        finally:
            finished.set()

    threading.Thread(target=run).start()
    try:
        # Not `Thread.join`: if it is interrupted, Python before 3.13 takes the thread for ended.
        while not finished.wait(1.0):  # without a limit it cannot be interrupted on Windows
            pass
    except BaseException:
        _stop(options)
        finished.wait(1.0)
        raise
    if errors:
        raise errors[0]
    return outputs


def _stop(options: Any) -> None:
    """Make ONNX Runtime stop the run under these `RunOptions` before its next operator."""
    options.terminate = True


def timeout_error(seconds: float) -> StoppedError:
    """The error for a run that took longer than allowed."""
    text = f"the model was stopped after {seconds:g} s; allow more with "
    return StoppedError(Message(text, Argument("timeout")), "time")


def _types(tensors: list[Any]) -> dict[str, TensorType]:
    """The types of the inputs or outputs of an `InferenceSession`."""
    names = {"float": "float32", "double": "float64"}
    types = {}
    for tensor in tensors:
        element = tensor.type.removeprefix("tensor(").removesuffix(")")
        shape = tuple(extent if isinstance(extent, int) else None for extent in tensor.shape)
        types[tensor.name] = TensorType(names.get(element, element), shape)
    return types
