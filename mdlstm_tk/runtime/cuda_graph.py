"""Repeated runs over buffers that stay where they are, which a captured CUDA graph needs."""

from __future__ import annotations

import threading
from dataclasses import dataclass
from typing import Any

import numpy as np

from mdlstm_tk.runtime.io.npy import Array

MAX_SHAPES = 8  # that are captured: each keeps its memory on the device until the session is closed
NO_GRAPH = "-1"

Shapes = tuple[tuple[int, ...], ...]


@dataclass(frozen=True)
class _Buffers:
    inputs: dict[str, Any]
    output: Any
    binding: Any
    graph: str


class BoundRuns:
    """Runs of a session whose inputs' shapes come again.

    A run with the shapes of the run before it gets buffers of its own for them: ONNX Runtime captures
    once what it does with these, and replays it whenever the shapes come again. Runs wait for each
    other, as they share the buffers.

    Args:
        onnxruntime: the module.
        session: of ONNX Runtime, started with CUDA graphs; it has one output.
        device: where the buffers are: "cuda".
        index: of the device.
    """

    def __init__(self, onnxruntime: Any, session: Any, device: str, index: int) -> None:
        self._values, self._session = onnxruntime.OrtValue, session
        self._place = (device, index)
        self._buffers: dict[Shapes, _Buffers] = {}
        self._before: Shapes | None = None
        self._lock = threading.Lock()

    def __call__(self, feeds: dict[str, Array], options: Any) -> Array:
        """The output for these inputs, under these RunOptions."""
        shapes = tuple(x.shape for x in feeds.values())
        with self._lock:
            again, self._before = shapes == self._before, shapes
            buffers = self._buffers.get(shapes)
            if buffers is not None:
                for name, x in feeds.items():
                    buffers.inputs[name].update_inplace(x)
                options.add_run_config_entry("gpu_graph_id", buffers.graph)
                self._session.run_with_iobinding(buffers.binding, options)
                return np.array(buffers.output.numpy())
            options.add_run_config_entry("gpu_graph_id", NO_GRAPH)
            y: Array = self._session.run(None, feeds, options)[0]
            if again and len(self._buffers) < MAX_SHAPES:
                self._buffers[shapes] = self._bind(feeds, y)
            return y

    def _bind(self, feeds: dict[str, Array], y: Array) -> _Buffers:
        """Buffers for inputs and an output like these."""
        inputs = {
            name: self._values.ortvalue_from_numpy(x.copy(), *self._place) for name, x in feeds.items()
        }
        output = self._values.ortvalue_from_shape_and_type(y.shape, y.dtype, *self._place)
        binding = self._session.io_binding()
        for name, value in inputs.items():
            binding.bind_ortvalue_input(name, value)
        binding.bind_ortvalue_output(self._session.get_outputs()[0].name, output)
        return _Buffers(inputs, output, binding, str(len(self._buffers) + 1))
