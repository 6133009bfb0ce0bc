"""`Session`: run an exported model with ONNX Runtime."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from mdlstm_tk.errors import InputError, MDLSTMError, require
from mdlstm_tk.runtime.cuda_graph import CudaGraphRunner
from mdlstm_tk.runtime.io.npy import MAX_BYTES, Array, read_capped
from mdlstm_tk.runtime.metadata import Metadata
from mdlstm_tk.runtime.metadata_checks import check_agreement, types_of
from mdlstm_tk.runtime.providers import create_session, one_line
from mdlstm_tk.runtime.security.model_check import check_model
from mdlstm_tk.runtime.shapes import Shapes


class Session:
    """An exported model, loaded and ready to run.

        >>> session = Session("model-8x8.onnx", device="cpu")
        >>> y = session(x)                      # x (N, 8, 8, C) → y (N, 8, 8, outputs)
        >>> y = session(x[0])                   # without the batch axis: (8, 8, C) → (8, 8, outputs)
        >>> y = session(x[0, ..., 0])           # C = 1 and one output: (8, 8) → (8, 8)
        >>> session = Session("padded.onnx")    # exported with valid extents as an input
        >>> y = session(x, sizes=sizes)         # sizes (N, 2), integers
        >>> session = Session("two.onnx")       # a network with several outputs
        >>> y, aux = session(x).values()        # a dict of arrays, by the names in metadata.output_names

    Inputs and outputs are NumPy arrays; outputs are float32, or integers where the network returns
    integers. Calls from several threads are safe: they run concurrently, except with CUDA graphs, where
    they take turns.

    The model may be untrusted. `mdlstm_tk.runtime.security.model_check` says what is refused, and what
    cannot be prevented.

    Args:
        model: path of an `.onnx` file that `mdlstm export` wrote, or its content.
        device: "auto" (CUDA if it works, else CPU), "cpu", "cuda" or "cuda:N".
        threads: CPU threads of one run. One is as fast as several for small batches and hidden sizes;
            0 means one per core.
        timeout: maximum duration of one run in seconds; None: no limit. It is checked between operators.
        max_bytes: maximum size in bytes of the file, of its tensors together, and of one sample.
        tf32: let matrix products on CUDA round their inputs to 10 bits of mantissa, which is faster.

    Attributes:
        metadata: what the file says about the model: grid, channels, outputs, task.
        device: "cpu" or "cuda:N", where the model runs.
        provider: ONNX Runtime's name for the device.
        reason: why "auto" did not take the CUDA that this ONNX Runtime supports; else None.

    Raises:
        InputError: the file does not exist, is not a model that mdlstm-tk exported, or is refused.
        DeviceError: CUDA was asked for and cannot be used. It never falls back to the CPU silently.
        MissingExtraError: ONNX Runtime is not installed.
    """

    def __init__(
        self,
        model: str | Path | bytes,
        device: str = "auto",
        *,
        threads: int = 1,
        timeout: float | None = None,
        max_bytes: int = MAX_BYTES,
        tf32: bool = False,
    ) -> None:
        self._onnxruntime: Any = require("onnxruntime", "cpu")
        label = "the model" if isinstance(model, bytes) else str(model)
        data = model if isinstance(model, bytes) else _read_model(Path(model), max_bytes)
        check_model(data, label, max_bytes)
        created = create_session(data, label, device, threads, tf32)
        self._session: Any = created.session
        self._graph_runner: CudaGraphRunner | None = None
        if created.cuda_graphs and created.cuda_index is not None:
            self._graph_runner = CudaGraphRunner(
                self._onnxruntime, self._session, "cuda", created.cuda_index
            )
        self.device = "cpu" if created.cuda_index is None else f"cuda:{created.cuda_index}"
        self.provider: str = self._session.get_providers()[0]
        self.reason = created.reason
        try:
            props = self._session.get_modelmeta().custom_metadata_map
        except UnicodeDecodeError:
            raise InputError(f"the metadata of {label} are not UTF-8; export the model again") from None
        self.metadata = Metadata.from_props(props, label)
        sample_bytes = self.metadata.sample_bytes
        if sample_bytes > max_bytes:
            raise InputError(
                f"one sample for {label} takes {sample_bytes} bytes, more than {max_bytes}; "
                "allow more with --max-bytes"
            )
        self._output_names = [tensor.name for tensor in self._session.get_outputs()]
        inputs, outputs = types_of(self._session.get_inputs()), types_of(self._session.get_outputs())
        check_agreement(self.metadata, inputs, outputs, label)
        self._shapes = Shapes(self.metadata)
        self._timeout = timeout

    def __call__(self, x: Array, sizes: Array | None = None, **extra_inputs: Array) -> Any:
        """Run the model.

        Args:
            x: real numbers of shape (N, *grid, C), (*grid, C) or, if C is 1, (*grid). For a channels-first
                model the channels come before the grid.
            sizes: valid extents of each sample, integers of shape (N, D), for a model that was exported
                with them. Values of x outside them are ignored; values of y outside them mean nothing.
            **extra_inputs: the model's further inputs by name, with a batch axis if x has one.

        Returns:
            y as float32, (N, *⌈grid/window⌉, outputs), or (N, outputs) if the model's output has no grid.
            It has a batch axis if x has one, and no channel axis if x has none and there is one output.
            A model that was exported with `sizes` takes smaller grids than its own, too; y is then what
            a model of that grid returns. In a channels-first model the outputs come before the grid. If the
            model has several outputs, a dict of them by name.

        Raises:
            InputError: x, sizes or an extra input has the wrong shape, is empty or is not finite. If the
                grid is wrong, the message names the one that fits.
            MDLSTMError: ONNX Runtime fails, runs out of memory or time, or the session is closed.
        """
        batch = self._shapes.prepare(x)
        extra = self._shapes.prepare_extra_inputs(extra_inputs, batch)
        if sizes is None:
            (outputs,) = self._run_together([batch.samples], extra)
        else:
            outputs = self._run(batch.samples, {"sizes": self._shapes.prepare_sizes(sizes, batch), **extra})
        return _single(self._shapes.restore_axes(outputs, batch))

    def run_many(self, arrays: Sequence[Array]) -> list[Any]:
        """Run the model on arrays of different shapes in as few batches as possible.

        If the model takes `sizes`, all arrays are padded into one batch; else arrays of equal grids share
        a batch. The caller bounds the memory that this takes.

        Args:
            arrays: each as for a single call.

        Returns:
            For each array what a single call returns.

        Raises:
            InputError: as for a single call; "x[3]" is the fourth array.
            MDLSTMError: as for a single call.
        """
        batches = [self._shapes.prepare(x, f"x[{k}]") for k, x in enumerate(arrays)]
        for batch in batches:
            self._shapes.prepare_extra_inputs({}, batch)
        groups: dict[tuple[int, ...] | None, list[int]] = {}
        for k, batch in enumerate(batches):
            key = None if self._shapes.takes_sizes else batch.samples.shape[1:]
            groups.setdefault(key, []).append(k)
        results: dict[int, Any] = {}
        for members in groups.values():
            parts = self._run_together([batches[k].samples for k in members], {})
            for k, outputs in zip(members, parts, strict=True):
                results[k] = _single(self._shapes.restore_axes(outputs, batches[k]))
        return [results[k] for k in range(len(batches))]

    def warm_up(self, batch: int = 1, grid: tuple[int, ...] | None = None) -> None:
        """Run the model on zeros, so that later runs of this batch and grid reach their full speed.

        Args:
            batch: number of samples N.
            grid: extents of the grid. None: the model's own.

        Raises:
            InputError: the model takes any grid and none is given, or it does not take this one.
        """
        grid = grid or self.metadata.grid
        if grid is None:
            raise InputError("this model takes any grid; name the one to warm up for: warm_up(grid=...)")
        # With CUDA graphs, the second run captures a graph and the third replays it.
        for _ in range(1 if self._graph_runner is None else 3):
            self(np.zeros((batch, *self._shapes.sample_shape(grid)), np.float32))

    def close(self) -> None:
        """Release the model. Runs in progress finish; later ones raise an `MDLSTMError`."""
        self._session = self._graph_runner = None

    def __enter__(self) -> Session:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _run_together(self, parts: Sequence[Array], extra: Mapping[str, Array]) -> list[dict[str, Array]]:
        """Compute the outputs for each part (N, *grid, C) in one run. Grids may differ if the model takes
        `sizes`."""
        shapes = self._shapes
        if shapes.takes_sizes:
            samples, sizes = shapes.padded(parts)
            extra = {"sizes": sizes, **extra}
        else:
            samples = parts[0] if len(parts) == 1 else np.concatenate(parts)
        outputs = self._run(samples, extra)
        ends = np.cumsum([len(part) for part in parts])[:-1]
        pieces = {name: np.split(y, ends) for name, y in outputs.items()}
        results = [{name: split[k] for name, split in pieces.items()} for k in range(len(parts))]
        if not shapes.takes_sizes:
            return results
        return [shapes.cropped(y, shapes.grid(part)) for y, part in zip(results, parts, strict=True)]

    def _run(self, samples: Array, extra: Mapping[str, Array]) -> dict[str, Array]:
        """Run the model on all its inputs, in the shapes that its file declares.

        Returns:
            The outputs by name, in the order of the metadata.
        """
        # Local references: another thread may close the session meanwhile.
        session, graph_runner, metadata = self._session, self._graph_runner, self.metadata
        if session is None:
            raise MDLSTMError("this session is closed; open the model again with Session(...)")
        feeds = {metadata.inputs[0]: samples, **extra}
        with _time_limit(self._onnxruntime.RunOptions(), self._timeout) as (options, timed_out):
            try:
                arrays: list[Array] = (
                    session.run(None, feeds, options)
                    if graph_runner is None
                    else graph_runner(feeds, options)
                )
            except Exception as error:  # ONNX Runtime's exceptions have no common base class
                if timed_out.is_set():
                    message = f"the model was stopped after {self._timeout:g} s; allow more with --timeout"
                elif "bfc_arena" in str(error):
                    message = "the model needs more memory than there is; use a smaller batch or grid"
                else:
                    message = f"ONNX Runtime failed: {one_line(error)}"
                raise MDLSTMError(message) from None
        by_name = dict(zip(self._output_names, arrays, strict=True))
        outputs = {name: by_name[name] for name in metadata.output_names}
        for name, y in outputs.items():
            lacks_grid = metadata.windows[name] is not None and y.ndim != metadata.ndim + 2
            if y.dtype.kind not in "buif" or y.shape[:1] != samples.shape[:1] or lacks_grid or not y.size:
                raise MDLSTMError(
                    f"the model returned '{name}' of {y.dtype} and shape {y.shape} for x of shape "
                    f"{samples.shape}, which contradicts its metadata; export it again"
                )
        return outputs


def _single(outputs: dict[str, Array]) -> Any:
    """The only output, or all of them by name."""
    return next(iter(outputs.values())) if len(outputs) == 1 else outputs


@contextmanager
def _time_limit(options: Any, timeout: float | None) -> Iterator[tuple[Any, threading.Event]]:
    """Yield RunOptions that stop a run after `timeout` seconds, and an event that is set if they did."""
    timed_out = threading.Event()
    if timeout is None:
        yield options, timed_out
        return

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


def _read_model(path: Path, max_bytes: int) -> bytes:
    """Read the file into memory, so that ONNX Runtime has no path to resolve external data against."""
    try:
        with path.open("rb") as file:
            return read_capped(file, str(path), max_bytes)
    except FileNotFoundError:
        raise InputError(f"there is no model {path}; make one with: mdlstm export") from None
    except OSError as error:
        raise InputError(f"cannot read the model {path}: {error.strerror or error}") from None
