"""Untrusted models: what `check_model` refuses, and what limits hold for models that pass."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
from helpers import hostile_files, hostile_graphs, hostile_shapes
from helpers.crafted_models import (
    FLOAT,
    NEGATE,
    call,
    called_often,
    crafted,
    function,
    info,
    node,
    scanning,
    tensor,
)
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import inliner

from mdlstm_tk.cli import main
from mdlstm_tk.errors import InputError, MDLSTMError
from mdlstm_tk.runtime import Session
from mdlstm_tk.runtime.security.interface import TensorSpec
from mdlstm_tk.runtime.security.model_check import check_model

X = np.arange(4, dtype=np.float32).reshape(2, 2)
GROUPS = {
    "field": hostile_files.UNUSUAL_FIELDS,
    "encoding": hostile_files.ENCODINGS,
    "tensor": hostile_files.TENSORS,
    "interface": hostile_files.INTERFACES,
    "metadata": hostile_files.METADATA,
    "operator": hostile_graphs.OPERATORS,
    "value": hostile_graphs.VALUES,
    "division": hostile_graphs.DIVISIONS,
    "function": hostile_graphs.FUNCTIONS,
    "rank": hostile_shapes.RANKS,
}
CASES = {f"{group}: {name}": case for group, cases in GROUPS.items() for name, case in cases.items()}


@pytest.mark.parametrize("case", CASES)
def test_models_are_refused(case: str) -> None:
    make, message = CASES[case]
    model = make()
    data = model if isinstance(model, bytes) else model.SerializeToString()
    with pytest.raises(InputError, match=message) as refused:
        check_model(data, "the model", 10**8)
    text = str(refused.value)
    assert text.startswith("the model ") and text.isprintable() and len(text) < 250
    with pytest.raises(InputError, match=message):
        Session(data, "cpu", max_bytes=10**8)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"grid": "[1000000, 1000000]"}, "'x' in the graph"),
        ({"grid": '["a", 2]'}, "'grid'"),
        ({"layout": "3"}, "'layout'"),
        ({"parity": "[" * 100_000}, "'parity'"),
    ],
    ids=["another grid", "grid of strings", "layout that is a number", "deeply nested"],
)
def test_damaged_metadata_are_refused(fields: dict[str, str], message: str) -> None:
    with pytest.raises(InputError, match=message):
        Session(crafted(**fields).SerializeToString(), "cpu", max_bytes=10**8)


def test_a_grid_of_terabytes_is_refused() -> None:
    model = crafted(grid="[1000000, 1000000]")
    for value in (*model.graph.input, *model.graph.output):
        value.CopyFrom(info(value.name, FLOAT, (None, 10**6, 10**6, 1)))
    with pytest.raises(InputError, match="one sample"):
        Session(model.SerializeToString(), "cpu")


def runs(model: onnx.ModelProto) -> np.ndarray:
    return Session(model.SerializeToString(), "cpu")(X)


def test_honest_models_run() -> None:
    """The refusals above are due to what each model holds, not to how these models are built."""
    np.testing.assert_array_equal(runs(crafted()), X)
    np.testing.assert_array_equal(runs(inliner.inline_local_functions(called_often(NEGATE, 1))), -X)
    np.testing.assert_array_equal(runs(called_often(NEGATE, 3)), -X)
    np.testing.assert_array_equal(runs(scanning(node("Add", "v two", "v_out"), rows=5)), X + 10)
    one, constant = tensor("one", [1]), tensor("shape", [-1, 2, 2, 1])
    two_parts = node("Concat", "first second", "shape", axis=0)
    shapes = {
        "constant": ([], [constant]),
        "concatenated": ([two_parts], [tensor("first", [-1, 2]), tensor("second", [2, 1])]),
        "cast": ([node("Cast", "narrow", "shape", to=7)], [tensor("narrow", [-1, 2, 2, 1], np.int32)]),
        "computed": ([node("Shape", "x", "s"), node("Mul", "s one", "shape")], [one]),
    }
    for nodes, constants in shapes.values():
        np.testing.assert_array_equal(
            runs(crafted([*nodes, node("Reshape", "x shape", "y")], constants)), X
        )
    for divisor in (-2, 2, 2**32):
        halved = [node("Div", "n c", "q"), node("Cast", "q", "f", to=FLOAT), node("Add", "x f", "y")]
        y = runs(crafted(halved, [tensor("n", [-(2**63)]), tensor("c", divisor)]))
        np.testing.assert_allclose(y, X - 2.0**63 / divisor)
    by_extents = [node("Shape", "x", "s"), node("Div", "one s", "q"), node("Identity", "x", "y")]
    np.testing.assert_array_equal(runs(crafted(by_extents, [one])), X)
    reshape = function("f", node("Reshape", "a s", "b"), inputs="a s")
    np.testing.assert_array_equal(runs(crafted([call("f", "x shape", "y")], [constant], [reshape])), X)


def test_a_summary_says_what_is_in_the_file() -> None:
    model = crafted(task='"é"')
    model.graph.input.append(info("sizes", 7, ["N", 2]))
    summary = check_model(model.SerializeToString(), "the model")
    assert summary.inputs == (
        TensorSpec("x", "float32", (None, 2, 2, 1)),
        TensorSpec("sizes", "int64", (None, 2)),
    )
    assert summary.outputs == (TensorSpec("y", "float32", (None, 2, 2, 1)),)
    assert summary.metadata_props == {entry.key: entry.value for entry in model.metadata_props}


ENDLESS = scanning(node("Add", "v two", "v_out"), rows=10**9, width=0)  # takes no memory


def test_timeout_stops_an_endless_loop() -> None:
    session = Session(ENDLESS.SerializeToString(), "cpu", timeout=0.3)
    for _ in range(2):
        with pytest.raises(MDLSTMError, match=r"0\.3 s"):
            session(X)


def with_large_intermediate(count: int) -> bytes:
    """y = x + the sum of `count` zeros that the graph creates when it runs."""
    shape = tensor("shape", [count])
    nodes = [node("ConstantOfShape", "shape", "big"), node("ReduceSum", "big", "sum", keepdims=0)]
    return crafted([*nodes, node("Add", "x sum", "y")], [shape]).SerializeToString()


def test_large_intermediate_tensors_end_in_an_error() -> None:
    with pytest.raises(MDLSTMError, match="memory"):
        Session(with_large_intermediate(10**12), "cpu")(X)
    np.testing.assert_array_equal(Session(with_large_intermediate(1000), "cpu")(X), X)


def test_memory_limit_is_below_the_memory_of_the_machine(tmp_path: Path) -> None:
    """Run in another process, as the limit is set once per process, with a limit that is small enough to
    be reached safely."""
    (tmp_path / "m.onnx").write_bytes(with_large_intermediate(2**26))
    code = """if True:
        import sys, numpy
        from mdlstm_tk.errors import MDLSTMError
        from mdlstm_tk.runtime import Session, providers
        providers.MEMORY_SHARE = int(sys.argv[1]) * 2**20 / providers.available_memory()
        try:
            print(Session("m.onnx", "cpu")(numpy.ones((2, 2))).tolist())
        except MDLSTMError as error:
            print(error)
    """

    def run(megabytes: int) -> str:
        command = [sys.executable, "-c", code, str(megabytes)]
        return subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True).stdout

    assert "memory" in run(100)
    assert run(600).strip() == "[[1.0, 1.0], [1.0, 1.0]]"


@pytest.mark.parametrize("reduced", [(0, 1, 2, 3), (0,), (1, 2, 3)], ids=str)
def test_outputs_that_contradict_the_metadata_are_refused(reduced: tuple[int, ...]) -> None:
    model = crafted([node("ReduceSum", "x axes", "y", keepdims=0)], [tensor("axes", reduced)])
    shape = [extent for axis, extent in enumerate((None, 2, 2, 1)) if axis not in reduced]
    model.graph.output[0].CopyFrom(info("y", FLOAT, shape))
    with pytest.raises(InputError, match="in the graph"):
        Session(model.SerializeToString(), "cpu")


def test_a_file_is_run_in_the_format_that_was_checked() -> None:
    """ONNX Runtime recognises its own format by four bytes that are free to choose in an ONNX file."""
    data = b"\x12\x0aaaORTM1234" + crafted().SerializeToString()
    assert data[4:8] == b"ORTM"
    np.testing.assert_array_equal(Session(data, "cpu")(X), X)


def test_large_files_are_refused_before_they_are_read(model: Path) -> None:
    with pytest.raises(InputError, match="1000 bytes"):
        Session(model, "cpu", max_bytes=1000)


SEEDS = [
    model.SerializeToString()
    for model in (
        crafted(),
        called_often(NEGATE, 3),
        scanning(node("Add", "v two", "v_out")),
        crafted([node("Reshape", "x shape", "y", allowzero=0)], [tensor("shape", [-1, 2, 2, 1])]),
    )
]


@settings(max_examples=400, deadline=None)
@given(st.sampled_from(SEEDS), st.data())
def test_damaged_models_end_in_an_error_or_run(seed: bytes, data: st.DataObject) -> None:
    """Cut off, with bytes changed or inserted."""
    changed = bytearray(seed[: data.draw(st.integers(0, len(seed)))] if data.draw(st.booleans()) else seed)
    for _ in range(data.draw(st.integers(0, 4))):
        index = data.draw(st.integers(0, max(0, len(changed) - 1)))
        changed[index : index + data.draw(st.integers(0, 1))] = data.draw(st.binary(min_size=1, max_size=3))
    try:
        y = Session(bytes(changed), "cpu", timeout=5)(X)
    except MDLSTMError:
        return
    assert isinstance(y, np.ndarray)


def test_the_command_line_passes_the_limits_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    onnx.save(ENDLESS, "endless.onnx")
    np.save("x.npy", X)

    def fails(*arguments: str) -> tuple[object, str]:
        with pytest.raises(SystemExit) as ended:
            main(list(arguments))
        return ended.value.code, capfd.readouterr().err

    code, err = fails("infer", "x.npy", "-m", "endless.onnx", "--timeout", "0.3")
    assert (code, "0.3 s" in err) == (1, True), err
    code, err = fails("infer", "x.npy", "-m", "endless.onnx", "--max-bytes", "200")
    assert (code, "200 bytes" in err) == (2, True), err
    code, err = fails("info", "endless.onnx", "--max-bytes", "200")
    assert (code, "200 bytes" in err) == (2, True), err
    assert not Path("x.out.npy").exists()
