"""Single sweeps with small random weights, as captured graphs built by hand instead of by the exporter."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import onnx
import onnxruntime
import torch
from onnx import TensorProto, helper, numpy_helper

from helpers import oracle
from mdlstm_tk import MDLSTM
from mdlstm_tk.cells import get_cell
from mdlstm_tk.export import lower
from mdlstm_tk.export.capture import DOMAIN, IR_VERSION, OPSET
from mdlstm_tk.export.lowering.lower import subgraphs, walk
from mdlstm_tk.inputs import TENSORS
from mdlstm_tk.layer import PARAMETERS
from mdlstm_tk.states import line_counts
from mdlstm_tk.wavefront import Direction

CHANNELS = 2
GRIDS = {1: (6,), 2: (3, 5), 3: (3, 2, 4), 4: (2, 3, 2, 2)}
FORMS = ("unrolled", "scan")  # for one grid, and for any


@dataclass
class Sweep:
    """A sweep with small random weights, as a captured graph and as a float64 computation."""

    cell: str
    directions: Sequence[Direction]
    weights: dict[str, np.ndarray]

    @classmethod
    def random(
        cls,
        cell: str = "graves",
        directions: int | str | Sequence[Direction] = 1,
        ndim: int = 2,
        units: int = 3,
        dtype: type = np.float32,
        **options: bool,
    ) -> Sweep:
        """A sweep with the parameters of an `MDLSTM`, which takes the options."""
        rng = np.random.default_rng(0)
        layer = MDLSTM(CHANNELS, units, ndim=ndim, directions=directions, cell=cell, **options)
        parameters = {name: getattr(layer, f"{name}_l0", None) for name in PARAMETERS}
        weights = {
            name: rng.uniform(-0.4, 0.4, parameter.shape).astype(dtype)
            for name, parameter in parameters.items()
            if parameter is not None
        }
        return cls(cell, layer.directions, weights)

    def captured(self, grid: Sequence[int], sizes: bool = False, states: bool = False) -> onnx.ModelProto:
        """The graph that the exporter would make of the sweep, with or without initial and final states."""
        kind = helper.np_dtype_to_tensor_dtype(self.weights["weight_ih"].dtype)
        ndim = len(grid)
        inputs = [helper.make_tensor_value_info("x", kind, ["N", *[None] * ndim, CHANNELS])]
        if sizes:
            inputs.append(helper.make_tensor_value_info("sizes", TensorProto.INT64, ["N", ndim]))
        present = {"x", *self.weights, *(["sizes"] if sizes else []), *(["initial"] if states else [])}
        state_shape = ["N", None, len(self.directions), 1 + self.states, self.units]
        if states:
            inputs.append(helper.make_tensor_value_info("initial", TensorProto.FLOAT, state_shape))
        node = helper.make_node(
            "Wavefront",
            [name if name in present else "" for name in TENSORS],
            ["y", "final"] if states else ["y"],
            name="sweep",
            domain=DOMAIN,
            directions=[sign for direction in self.directions for sign in direction],
            grid=list(grid),
            cell=self.cell,
        )
        outputs = [helper.make_tensor_value_info("y", kind, [None] * (ndim + 3))]
        if states:
            outputs.append(helper.make_tensor_value_info("final", TensorProto.FLOAT, state_shape))
        tensors = [numpy_helper.from_array(array, name) for name, array in self.weights.items()]
        graph = helper.make_graph([node], "captured", inputs, outputs, tensors)
        opsets = [helper.make_opsetid("", OPSET), helper.make_opsetid(DOMAIN, 1)]
        return helper.make_model(graph, opset_imports=opsets, ir_version=IR_VERSION)

    def exact_results(self, x: np.ndarray, **optional: np.ndarray) -> list[np.ndarray]:
        """h, and the final states if there are `initial` ones, in float64. `sizes` are optional, too."""
        weights = {name: torch.from_numpy(array) for name, array in self.weights.items()}
        given = {name: torch.from_numpy(array) for name, array in optional.items()}
        results = oracle.sweep(self.cell, torch.from_numpy(x), weights, self.directions, **given)
        return [result.numpy() for result in results[: 1 + ("initial" in given)]]

    def exact(self, x: np.ndarray, **optional: np.ndarray) -> np.ndarray:
        """h alone."""
        return self.exact_results(x, **optional)[0]

    def random_states(self, batch: int, grid: Sequence[int]) -> np.ndarray:
        """Initial states (N, F, dirs, 1 + S, n); of a cell that divides by a state n positive ones."""
        shape = batch, sum(line_counts(grid)), len(self.directions), 1 + self.states, self.units
        states = np.random.default_rng(2).standard_normal(shape).astype(np.float32)
        return np.abs(states) + np.float32(0.5) if "n" in get_cell(self.cell).states else states

    @property
    def states(self) -> int:
        """S."""
        return len(get_cell(self.cell).states)

    @property
    def units(self) -> int:
        gates = len(get_cell(self.cell).gates(len(self.directions[0])))
        return self.weights["weight_ih"].shape[1] // gates


def lowered(
    sweep: Sweep, form: str, grid: tuple[int, ...], sizes: bool = False, states: bool = False
) -> onnx.ModelProto:
    """The sweep lowered to standard operators, after checks of the model's structure."""
    captured = sweep.captured([-1] * len(grid) if form == "scan" else grid, sizes, states)
    model = lower(captured, form)
    onnx.checker.check_model(model, full_check=True)
    assert {(opset.domain, opset.version) for opset in model.opset_import} == {("", 18)}
    assert model.ir_version == 10  # the newest that ONNX Runtime 1.20 reads
    nodes = list(walk(model.graph.node))
    check_scans(model)
    assert all(node.attribute for node in nodes if node.op_type == "ConstantOfShape")  # tract needs `value`
    assert {node.domain for node in nodes} == {""}
    assert max(Counter(node.name for node in nodes).values()) == 1
    assert max(Counter(name for node in nodes for name in node.output).values()) == 1
    return model


def check_scans(model: onnx.ModelProto) -> None:
    """Check that bodies declare types, and use nothing from outside but constants, as OpenVINO wants it."""
    constants = {tensor.name for tensor in model.graph.initializer}
    for node in model.graph.node:
        for body in subgraphs(node):
            values = [*body.input, *body.output]
            assert all(value.type.tensor_type.elem_type for value in values)
            assert all(value.type.tensor_type.HasField("shape") for value in values)
            known = constants | {value.name for value in body.input}
            for inner in body.node:
                assert set(inner.input) <= known, f"{inner.name} uses a computed value from outside"
                known.update(inner.output)


def run(model: onnx.ModelProto, **inputs: np.ndarray) -> list[np.ndarray]:
    """All outputs of a model, by ONNX Runtime."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, ["CPUExecutionProvider"])
    return session.run(None, inputs)


def random_x(batch: int, grid: Sequence[int], dtype: type = np.float32) -> np.ndarray:
    return np.random.default_rng(1).standard_normal((batch, *grid, CHANNELS)).astype(dtype)
