"""`Session`: an exported model under ONNX Runtime."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from math import prod
from pathlib import Path
from typing import Any

import numpy as np

from mdlstm_tk.errors import InputError, MDLSTMError, require
from mdlstm_tk.runtime.cuda_graph import BoundRuns
from mdlstm_tk.runtime.io.npy import FLOAT_BYTES, MAX_BYTES, Array, read_capped
from mdlstm_tk.runtime.metadata import Metadata
from mdlstm_tk.runtime.providers import one_line, start
from mdlstm_tk.runtime.security.model_check import check_model
from mdlstm_tk.runtime.shapes import Shapes


class Session:
    """An exported model, ready to run.

        >>> session = Session("model-8x8.onnx", device="cpu")
        >>> session(matrix)              # (8, 8) → (8, 8)

    Several threads may call it at once; on CUDA with graphs they take turns.

    The model may be untrusted: see `mdlstm_tk.runtime.security.model_check` for what is refused and
    for what cannot be.

    Args:
        model: path of an `.onnx` file that `mdlstm export` wrote, or its bytes.
        device: "auto" (CUDA if it works, else CPU), "cpu", "cuda" or "cuda:N".
        threads: of one run on the CPU. One is as fast as several where the batch and the hidden size
            are small; 0 takes as many as there are cores.
        timeout: seconds that a run may take; None for no limit. It is looked at between operators.
        max_bytes: that the file, its tensors, or one sample of its grid may take.
        tf32: on CUDA, let matrix products round their inputs to 10 bits, which is faster.

    Attributes:
        metadata: what the model says of itself.
        device: "cpu" or "cuda:N", where it really runs.
        provider: ONNX Runtime's name for that.
        reason: why "auto" did not take the CUDA that this onnxruntime has; else None.

    Raises:
        InputError: no such file, or not a model that mdlstm-tk exported.
        DeviceError: CUDA was asked for and cannot be had. There is no silent fallback.
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
        shown = "the model" if isinstance(model, bytes) else str(model)
        data = model if isinstance(model, bytes) else _read(Path(model), max_bytes)
        check_model(data, shown, max_bytes)
        started = start(data, shown, device, threads, tf32)
        self._session: Any = started.session
        self._bound: BoundRuns | None = None
        if started.graphs and started.cuda is not None:
            self._bound = BoundRuns(self._onnxruntime, self._session, "cuda", started.cuda)
        self.device = "cpu" if started.cuda is None else f"cuda:{started.cuda}"
        self.provider: str = self._session.get_providers()[0]
        self.reason = started.reason
        try:
            props = self._session.get_modelmeta().custom_metadata_map
        except UnicodeDecodeError:
            raise InputError(f"{shown} has damaged metadata, which is no text; export it again") from None
        self.metadata = Metadata.from_props(props, shown)
        if prod(self.metadata.grid or ()) * self.metadata.channels * FLOAT_BYTES > max_bytes:
            raise InputError(f"one sample for {shown} takes more than {max_bytes} bytes")
        self._shapes = Shapes(self.metadata)
        self._timeout = timeout

    def __call__(self, x: Array, sizes: Array | None = None, **others: Array) -> Array:
        """Run the model.

        Args:
            x: real numbers of shape (*grid), (*grid, C) or (N, *grid, C); (*grid) if C is 1. Channels come
                before the grid if the model's layout has them there.
            sizes: (N, D) whole numbers, the valid extent of each sample, for a model that takes them; what
                lies outside in x is ignored, and means nothing in y.
            **others: further inputs by name, if the model has any; with the batch axis if x has it.

        Returns:
            y float32, with the batch axis if x has it, and without the channels' axis if x has none and
            y has one feature. A model that takes sizes takes smaller grids than its own as well; y is then
            what the model for that grid would give.

        Raises:
            InputError: x has another shape, is empty or is not finite; names the grid that would fit.
            MDLSTMError: ONNX Runtime fails, runs out of memory or out of time, or the session is closed.
        """
        given = self._shapes.rows(x)
        named = self._shapes.others(others, given)
        if sizes is None:
            (y,) = self._run_together([given.rows], named)
        else:
            y = self._run(given.rows, {"sizes": self._shapes.sizes(sizes, given.rows), **named})
        return self._shapes.result(y, given)

    def run_many(self, arrays: Sequence[Array]) -> list[Array]:
        """Run the model on arrays of any mix of shapes that it takes, in as few batches as can be.

        A model that takes sizes gets all in one batch, padded; another gets those of one grid together.
        The memory that takes is for the caller to bound.

        Args:
            arrays: each as for a single call.

        Returns:
            For each what a single call would return.

        Raises:
            InputError: as for a single call; "x[3]" is the fourth array.
        """
        given = [self._shapes.rows(x, f"x[{k}]") for k, x in enumerate(arrays)]
        for x in given:
            self._shapes.others({}, x)
        groups: dict[tuple[int, ...] | None, list[int]] = {}
        for k, x in enumerate(given):
            key = None if self._shapes.takes_sizes else x.rows.shape[1:]
            groups.setdefault(key, []).append(k)
        results: dict[int, Array] = {}
        for members in groups.values():
            outputs = self._run_together([given[k].rows for k in members], {})
            for k, y in zip(members, outputs, strict=True):
                results[k] = self._shapes.result(y, given[k])
        return [results[k] for k in range(len(given))]

    def _run_together(self, parts: Sequence[Array], named: Mapping[str, Array]) -> list[Array]:
        """y of each part (N, *grid, C), all of one grid, unless the model takes sizes, from one run."""
        shapes = self._shapes
        if shapes.takes_sizes:
            rows, sizes = shapes.padded(parts)
            named = {"sizes": sizes, **named}
        else:
            rows = parts[0] if len(parts) == 1 else np.concatenate(parts)
        outputs = np.split(self._run(rows, named), np.cumsum([len(part) for part in parts])[:-1])
        if not shapes.takes_sizes:
            return outputs
        return [shapes.cropped(y, shapes.grid(part)) for y, part in zip(outputs, parts, strict=True)]

    def _run(self, rows: Array, named: Mapping[str, Array]) -> Array:
        """The model's y, given all its inputs as it takes them."""
        session, bound, about = self._session, self._bound, self.metadata
        if session is None:
            raise MDLSTMError("this session is closed; open the model again with Session(...)")
        feeds = {about.inputs[0]: rows, **named}
        with _limited(self._onnxruntime.RunOptions(), self._timeout) as (options, stopped):
            try:
                y: Array = session.run(None, feeds, options)[0] if bound is None else bound(feeds, options)
            except Exception as error:  # ONNX Runtime's exceptions share no base but this
                if stopped.is_set():
                    message = f"the model was stopped after {self._timeout:g} s; allow more with --timeout"
                elif "bfc_arena" in str(error):
                    message = "the model needs more memory than there is; use a smaller batch or grid"
                else:
                    message = f"ONNX Runtime failed: {one_line(error)}"
                raise MDLSTMError(message) from None
        if y.shape[:1] != rows.shape[:1] or (about.window is not None and y.ndim != about.ndim + 2):
            raise MDLSTMError(f"the model gave an array of shape {y.shape} for x of shape {rows.shape}")
        return y

    def warm_up(self, batch: int = 1, grid: tuple[int, ...] | None = None) -> None:
        """Run zeros, so that the next run of that batch and grid is as fast as any.

        Args:
            batch: N.
            grid: the model's own if not given.

        Raises:
            InputError: the model takes any grid and none is given, or does not take this one.
        """
        about = self.metadata
        grid = grid or about.grid
        if grid is None:
            raise InputError("this model takes any grid; say which one to warm up for: warm_up(grid=...)")
        sample = (*grid, about.channels) if about.channels_last else (about.channels, *grid)
        for _ in range(1 if self._bound is None else 3):  # the third replays what the second captured
            self(np.zeros((batch, *sample), np.float32))

    def close(self) -> None:
        """Let go of the model. The session cannot run afterwards; runs under way end as usual."""
        self._session = self._bound = None

    def __enter__(self) -> Session:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


@contextmanager
def _limited(options: Any, timeout: float | None) -> Iterator[tuple[Any, threading.Event]]:
    """RunOptions that stop a run after `timeout` seconds, and whether they did."""
    stopped = threading.Event()
    if timeout is None:
        yield options, stopped
        return

    def stop() -> None:
        stopped.set()
        options.terminate = True

    timer = threading.Timer(timeout, stop)
    timer.daemon = True
    timer.start()
    try:
        yield options, stopped
    finally:
        timer.cancel()


def _read(path: Path, max_bytes: int) -> bytes:
    """The file's bytes, so that ONNX Runtime has no path from which to resolve external data."""
    try:
        with path.open("rb") as file:
            return read_capped(file, str(path), max_bytes)
    except FileNotFoundError:
        raise InputError(f"there is no model {path}; make one with: mdlstm export") from None
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror or error}") from None
