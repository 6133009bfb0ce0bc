"""`Session`: an exported model under ONNX Runtime."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from mdlstm_tk.errors import DeviceError, InputError, MDLSTMError, require
from mdlstm_tk.runtime.npy import Array
from mdlstm_tk.runtime.metadata import Metadata
from mdlstm_tk.runtime.shapes import Shapes

MAX_BYTES = 2**31 - 1  # what one protobuf message can hold
SILENT = 4  # ONNX Runtime's log level "fatal"


class Session:
    """An exported model, ready to run.

        >>> session = Session("model-8x8.onnx", device="cpu")
        >>> session(matrix)              # (8, 8) → (8, 8)

    Args:
        model: path of an `.onnx` file that `mdlstm export` wrote, or its bytes. External data is never
            read and custom operators are never loaded.
        device: "auto" (CUDA if it works, else CPU), "cpu", "cuda" or "cuda:N".
        threads: of one run on the CPU; 0 leaves the choice to ONNX Runtime.

    Attributes:
        metadata: what the model says of itself.
        device: "cpu" or "cuda:N", where it really runs.
        provider: ONNX Runtime's name for that.

    Raises:
        InputError: no such file, or not a model that mdlstm-tk exported.
        DeviceError: CUDA was asked for and cannot be had. There is no silent fallback.
        MissingExtraError: ONNX Runtime is not installed.
    """

    def __init__(self, model: str | Path | bytes, device: str = "auto", *, threads: int = 0) -> None:
        onnxruntime = require("onnxruntime", "cpu")
        shown = "the model" if isinstance(model, bytes) else str(model)
        data = model if isinstance(model, bytes) else _read(Path(model))
        index = _cuda_index(device)
        available = "CUDAExecutionProvider" in onnxruntime.get_available_providers()
        self._session: Any = None
        if index is not None and available:
            self._session = _start(onnxruntime, data, threads, shown, index)
        if self._session is None and device not in ("auto", "cpu"):
            raise DeviceError(
                f"device '{device}' cannot be used: "
                + (
                    "CUDA did not start; check the driver with nvidia-smi, and that CUDA and cuDNN of the "
                    "versions that this onnxruntime-gpu was built for are installed"
                    if available
                    else "this onnxruntime has no CUDA; install pip install 'mdlstm-tk[gpu]'"
                )
                + "; or use --device cpu"
            )
        if self._session is None:
            self._session = _start(onnxruntime, data, threads, shown, None)
            index = None
        self.device = "cpu" if index is None else f"cuda:{index}"
        self.provider: str = self._session.get_providers()[0]
        self.metadata = Metadata.from_props(self._session.get_modelmeta().custom_metadata_map, shown)
        self._shapes = Shapes(self.metadata)

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
        if self._session is None:
            raise MDLSTMError("this session is closed; open the model again with Session(...)")
        try:
            y: Array = self._session.run(None, {self.metadata.inputs[0]: rows, **named})[0]
        except Exception as error:  # ONNX Runtime's exceptions share no base but this
            raise MDLSTMError(f"ONNX Runtime failed: {_first_line(error)}") from None
        return y

    def close(self) -> None:
        """Free the model's memory. The session cannot run afterwards."""
        self._session = None

    def __enter__(self) -> Session:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _read(path: Path) -> bytes:
    """The file's bytes, so that ONNX Runtime has no path from which to resolve external data."""
    try:
        if path.stat().st_size > MAX_BYTES:
            raise InputError(f"{path} is larger than {MAX_BYTES} bytes, which no ONNX model can be")
        return path.read_bytes()
    except FileNotFoundError:
        raise InputError(f"there is no model {path}; make one with: mdlstm export") from None
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror or error}") from None


def _start(onnxruntime: Any, data: bytes, threads: int, shown: str, cuda: int | None) -> Any:
    """An ONNX Runtime session on the CPU, or on a CUDA device, or None where CUDA does not start."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = SILENT
    providers: list[Any] = ["CPUExecutionProvider"]
    if cuda is not None:
        providers = [("CUDAExecutionProvider", {"device_id": cuda, "use_tf32": 0}), *providers]
    try:
        session = onnxruntime.InferenceSession(data, options, providers=providers)
    except Exception as error:  # ONNX Runtime's exceptions share no base but this
        if cuda is not None:
            return None
        raise InputError(
            f"{shown} is not a model that ONNX Runtime can load: {_first_line(error)}"
        ) from None
    if cuda is not None and session.get_providers()[0] != "CUDAExecutionProvider":
        return None
    return session


def _cuda_index(device: str) -> int | None:
    """The CUDA device that a device name stands for, None for the CPU.

    Raises:
        InputError: it is no device name.
    """
    if device == "cpu":
        return None
    match = re.fullmatch(r"auto|cuda(?::(\d+))?", device)
    if match is None:
        raise InputError(f"device must be auto, cpu, cuda or cuda:N, got '{device}'")
    return int(match[1] or 0)


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
