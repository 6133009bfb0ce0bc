"""Capture and replay CUDA graphs, which needs inputs and outputs at fixed addresses."""

from __future__ import annotations

import threading
from typing import Any

import numpy as np

from mdlstm_tk.runtime.io.npy import Array

MAX_GRAPHS = 8  # each keeps its device memory until the session is closed
NO_GRAPH = "-1"  # ONNX Runtime's id for a run without capture or replay

InputShapes = tuple[tuple[int, ...], ...]

# Device buffers for one combination of input shapes, and the id of the graph captured on them: inputs by
# name, outputs, the binding of both, and the id.
_Buffers = tuple[dict[str, Any], list[Any], Any, str]


class CudaGraphRunner:
    """Run a session, with a captured CUDA graph where the inputs' shapes repeat.

    When two runs in a row have the same shapes, buffers are allocated for them. ONNX Runtime captures
    a graph on the next run with these shapes and replays it on all later ones. Runs take turns, as they
    share the buffers, which lie on the device "cuda"; tests use "cpu".
    """

    def __init__(self, onnxruntime: Any, session: Any, device: str, index: int) -> None:
        self._OrtValue, self._session = onnxruntime.OrtValue, session
        self._device = (device, index)
        self._buffers: dict[InputShapes, _Buffers] = {}
        self._previous_shapes: InputShapes | None = None
        self._lock = threading.Lock()

    def __call__(self, feeds: dict[str, Array], options: Any) -> list[Array]:
        """Run the session on `feeds` under the RunOptions `options`; returns its outputs."""
        shapes = tuple(x.shape for x in feeds.values())
        with self._lock:
            is_repeated, self._previous_shapes = shapes == self._previous_shapes, shapes
            buffers = self._buffers.get(shapes)
            if buffers is not None:
                inputs, results, binding, graph_id = buffers
                for name, x in feeds.items():
                    inputs[name].update_inplace(np.ascontiguousarray(x))  # it copies the bytes as they lie
                options.add_run_config_entry("gpu_graph_id", graph_id)
                self._session.run_with_iobinding(binding, options)
                return [np.array(output.numpy()) for output in results]
            options.add_run_config_entry("gpu_graph_id", NO_GRAPH)
            outputs: list[Array] = self._session.run(None, feeds, options)
            if is_repeated and len(self._buffers) < MAX_GRAPHS:
                self._buffers[shapes] = self._allocate(feeds, outputs)
            return outputs

    def _allocate(self, feeds: dict[str, Array], outputs: list[Array]) -> _Buffers:
        """Allocate and bind buffers for inputs shaped like `feeds` and outputs shaped like `outputs`."""
        inputs = {
            name: self._OrtValue.ortvalue_from_numpy(x.copy(), *self._device) for name, x in feeds.items()
        }
        buffers = [
            self._OrtValue.ortvalue_from_shape_and_type(y.shape, y.dtype, *self._device) for y in outputs
        ]
        binding = self._session.io_binding()
        for name, value in inputs.items():
            binding.bind_ortvalue_input(name, value)
        for tensor, buffer in zip(self._session.get_outputs(), buffers, strict=True):
            binding.bind_ortvalue_output(tensor.name, buffer)
        return inputs, buffers, binding, str(len(self._buffers) + 1)
