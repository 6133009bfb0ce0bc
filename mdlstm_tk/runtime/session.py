"""`Session`: an exported model under ONNX Runtime."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np

from mdlstm_tk.errors import DeviceError, InputError, MDLSTMError, require
from mdlstm_tk.runtime.arrays import Array, check_numbers
from mdlstm_tk.runtime.metadata import Metadata

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
        self._input: str = self._session.get_inputs()[0].name

    def __call__(self, x: Array) -> Array:
        """Run the model.

        Args:
            x: real numbers of shape (*grid), (*grid, C) or (N, *grid, C); (*grid) if C is 1.

        Returns:
            y float32, with the batch axis if x has it, and without the last axis if x has none and y has
            one feature.

        Raises:
            InputError: x has another shape, is empty or is not finite; names the grid that would fit.
        """
        if self._session is None:
            raise MDLSTMError("this session is closed; open the model again with Session(...)")
        x = check_numbers(np.asarray(x), "x")
        batch, grid, channels = self._split(x.shape)
        if grid != self.metadata.grid or channels != self.metadata.channels:
            raise InputError(self._misfit(x.shape, grid, channels))
        rows = x.reshape(batch or 1, *grid, channels)
        try:
            y: Array = self._session.run(None, {self._input: rows})[0]
        except Exception as error:  # ONNX Runtime's exceptions share no base but this
            raise MDLSTMError(f"ONNX Runtime failed: {_first_line(error)}") from None
        if batch is None:
            y = y[0]
        return y[..., 0] if x.ndim == len(grid) and y.shape[-1] == 1 else y

    def close(self) -> None:
        """Free the model's memory. The session cannot run afterwards."""
        self._session = None

    def __enter__(self) -> Session:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _split(self, shape: tuple[int, ...]) -> tuple[int | None, tuple[int, ...], int]:
        """Batch (None if there is no such axis), grid and channels of an input shape."""
        ndim = len(self.metadata.grid)
        if len(shape) == ndim:
            return None, shape, 1
        if len(shape) == ndim + 1:
            return None, shape[:-1], shape[-1]
        if len(shape) == ndim + 2:
            return shape[0], shape[1:-1], shape[-1]
        axes = ", ".join(self.metadata.layout.split()[1:-1])
        raise InputError(
            f"x has shape {shape}, expected ({axes}), ({axes}, C) or (N, {axes}, C) "
            f"with ({axes}) = {self.metadata.grid}"
        )

    def _misfit(self, shape: tuple[int, ...], grid: tuple[int, ...], channels: int) -> str:
        wanted = "x".join(map(str, self.metadata.grid))
        if channels != self.metadata.channels:
            return (
                f"x of shape {shape} has {channels} channels at each position, "
                f"the model takes {self.metadata.channels}"
            )
        given = "x".join(map(str, grid))
        return (
            f"a {given} grid does not fit this {wanted} model; make one with: mdlstm export --size {given}"
        )


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
