"""Models whose outputs are not what their metadata promise: nothing of them is written."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from helpers.crafted_models import INT64, crafted, info, node, tensor
from onnx import TensorProto

from mdlstm_tk.errors import InputError, MDLSTMError
from mdlstm_tk.runtime import Metadata, Session, decode, save_array
from mdlstm_tk.runtime.batching import write_results
from mdlstm_tk.runtime.io.writers import FORMATS, Format, write_arrays
from mdlstm_tk.runtime.jobs import Job
from mdlstm_tk.runtime.postprocessing import probabilities

X = np.ones((3, 2, 2, 1), np.float32)


def computed(
    nodes: list[onnx.NodeProto], *tensors: onnx.TensorProto, axes: int = 4, **metadata: Any
) -> bytes:
    """A model whose output has extents that only a run tells: `zero` is computed from x."""
    nodes = [
        node("ReduceSum", "x", "sum", keepdims=0),
        node("Mul", "sum none", "nothing"),
        node("Cast", "nothing", "zero", to=INT64),
        *nodes,
    ]
    none = tensor("none", [0.0], np.float32)
    model = crafted(nodes, [none, *tensors], **metadata)
    model.graph.output[0].CopyFrom(info("y", TensorProto.FLOAT, (None,) * axes))
    return model.SerializeToString()


OUTPUTS = {
    "another batch": computed(
        [node("Slice", "x start end axis", "y")],
        *(tensor(name, [k]) for name, k in (("start", 0), ("end", 1), ("axis", 0))),
    ),
    "nothing": computed(
        [node("Slice", "x start zero axis", "y")], tensor("start", [0]), tensor("axis", [1])
    ),
}


@pytest.mark.parametrize("case", OUTPUTS)
def test_a_run_that_returns_something_else_is_an_error(case: str) -> None:
    session = Session(OUTPUTS[case], "cpu")
    with pytest.raises(MDLSTMError, match="contradicts its metadata"):
        session(X)


def test_strings_are_refused_before_a_run() -> None:
    """As an array of objects, a string would be written as an address in memory."""
    model = crafted([node("Cast", "x", "y", to=TensorProto.STRING)])
    model.graph.output[0].type.tensor_type.elem_type = TensorProto.STRING
    with pytest.raises(InputError):
        Session(model.SerializeToString(), "cpu")


OBJECTS = {
    "objects": np.array([["secret"]], object),
    "text": np.array([["secret"]]),
    "bytes": np.array([[b"secret"]]),
    "records": np.zeros((1, 1), [("a", "f4")]),
    "dates": np.zeros((1, 1), "datetime64[s]"),
    "complex": np.zeros((1, 1), complex),
}


@pytest.mark.parametrize("file_format", FORMATS)
@pytest.mark.parametrize("case", OBJECTS)
def test_what_is_no_number_is_never_written(case: str, file_format: Format, tmp_path: Path) -> None:
    target = tmp_path / f"y.{file_format}"
    with pytest.raises(InputError):
        write_arrays(str(target), {None: OBJECTS[case]}, file_format)
    with pytest.raises(InputError, match="real numbers"):
        save_array(target, OBJECTS[case])
    assert list(tmp_path.iterdir()) == []


CLASSIFIER = Metadata(
    *("0", None, "scan", "N H W C", 1, 3), window=None, kind="classify", classes=("a", "b", "c")
)
RECOGNISER = Metadata(
    *("0", None, "scan", "N H W C", 1, 3), window=None, kind="transcribe", classes=("a", "b")
)
SEGMENTER = Metadata(*("0", None, "scan", "N H W C", 1, 3), kind="segment", classes=("a", "b", "c"))
ODD_SHAPES = {
    "classify": (CLASSIFIER, [(2, 4), (2, 2), (), (1, 1, 3), (0, 3), (3, 0), (2, 2, 2, 3)]),
    "transcribe": (RECOGNISER, [(2, 5, 4), (2, 5, 2), (3,), (), (0, 5, 3), (2, 0, 3), (2, 2, 2, 3)]),
    "segment": (SEGMENTER, [(2, 4, 5, 4), (3,), (), (2, 3), (2, 0, 5, 3), (1, 1, 1, 1, 3)]),
}


@pytest.mark.parametrize("kind", ODD_SHAPES)
def test_odd_shapes_are_one_error(kind: str, tmp_path: Path) -> None:
    metadata, shapes = ODD_SHAPES[kind]
    for shape in shapes:
        with pytest.raises(MDLSTMError, match="shape"):
            decode(np.zeros(shape, np.float32), metadata)
        job = Job("x.npy", str(tmp_path / "y.json"), "json")
        with pytest.raises(MDLSTMError, match="shape"):
            write_results(job, {None: np.zeros(shape, np.float32)}, metadata)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("dtype", [bool, np.int8, np.uint8, np.int64, np.float16, np.float32, np.float64])
def test_classes_of_any_numbers(dtype: type) -> None:
    y = np.array([[0, 1, 0], [1, 0, 0]], dtype)
    assert [answer.text for answer in decode(y, CLASSIFIER)] == ["b", "a"]
    np.testing.assert_allclose(probabilities(y).sum(-1), 1, rtol=1e-2)
    assert [answer.text for answer in decode(y[:, None], RECOGNISER)] == ["a", ""]


def test_numbers_that_are_not_finite_are_no_class_by_accident() -> None:
    (answer,) = decode(np.full((1, 3), np.nan, np.float32), CLASSIFIER, top=3)
    assert all(np.isnan(probability) for _, probability in answer.probabilities)


def test_results_whose_names_would_be_equal_are_refused() -> None:
    from mdlstm_tk.runtime.batching import _outputs_of

    y = np.zeros(2)
    job = Job("x.npz", "y.npz", "npz")
    assert len(_outputs_of(job, {"a": {"b": y, "c": y}, "b": {"b": y, "c": y}})) == 4
    with pytest.raises(InputError, match=r"'a\.b\.c'"):
        _outputs_of(job, {"a": {"b.c": y}, "a.b": {"c": y}})
