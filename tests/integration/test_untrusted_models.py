"""Untrusted models: what `check_model` refuses, and what limits hold for models that pass."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from helpers.crafted_models import (
    FLOAT,
    GO,
    INT64,
    PASS_ON,
    body,
    calling_f,
    crafted,
    external_tensor,
    function,
    huge_tensor,
    loop,
    model_with_sparse_initializer,
    model_with_training_info,
    nested_functions,
    nested_loops,
    node,
    own_node,
    sparse_tensor,
)
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper

from mdlstm_tk.cli import main
from mdlstm_tk.errors import InputError, MDLSTMError
from mdlstm_tk.runtime import Session

OUTSIDE = "outside the file"
MODELS: dict[str, tuple[Callable[[], onnx.ModelProto], str]] = {
    "external initializer": (lambda: crafted([node("Add", "x w", "y")], [external_tensor()]), OUTSIDE),
    "external constant": (
        lambda: crafted([node("Constant", "", "w", value=external_tensor()), node("Add", "x w", "y")]),
        OUTSIDE,
    ),
    "external in a loop": (
        lambda: crafted([loop(body(*PASS_ON, initializers=[external_tensor()]))], [GO]),
        OUTSIDE,
    ),
    "external in a function": (
        lambda: calling_f(
            function("f", node("Constant", "", "w", value=external_tensor()), node("Add", "a w", "b"))
        ),
        OUTSIDE,
    ),
    "external in a function's default": (
        lambda: calling_f(
            function(
                "f",
                node("Neg", "a", "b"),
                attribute_protos=[helper.make_attribute("t", external_tensor())],
            )
        ),
        OUTSIDE,
    ),
    "external in a list of tensors": (
        lambda: calling_f(function("f", node("Neg", "a", "b")), t=[external_tensor()]),
        OUTSIDE,
    ),
    "sparse initializer": (model_with_sparse_initializer, "sparse"),
    "sparse constant": (
        lambda: crafted(
            [node("Constant", "", "w", sparse_value=sparse_tensor()), node("Identity", "x", "y")]
        ),
        "sparse",
    ),
    "operator of Microsoft's that reads files": (
        lambda: crafted(
            [node("EPContext", "x", "y", domain="com.microsoft")], domains=("", "com.microsoft")
        ),
        "'EPContext' of domain 'com.microsoft'",
    ),
    "Python in the graph": (
        lambda: crafted(
            [node("PyOp", "x", "y", domain="ai.onnx.contrib")], domains=("", "ai.onnx.contrib")
        ),
        "'PyOp' of domain 'ai.onnx.contrib'",
    ),
    "operator on strings": (
        lambda: crafted([node("StringNormalizer", "x", "y")]),
        "'StringNormalizer'",
    ),
    "operator in a loop": (
        lambda: crafted([loop(body(*PASS_ON, node("ImageDecoder", "v", "p")))], [GO]),
        "'ImageDecoder'",
    ),
    "operator in a function": (
        lambda: calling_f(function("f", node("RandomNormalLike", "a", "b"))),
        "'RandomNormalLike'",
    ),
    "name with a terminal escape": (
        lambda: crafted([node("\x1b[2J", "x", "y")]),
        r"'\\x1b\[2J'",
    ),
    "strings": (
        lambda: crafted([], [helper.make_tensor("w", TensorProto.STRING, [1], [b"a"])]),
        "of strings",
    ),
    "unknown type": (
        lambda: crafted([], [TensorProto(name="w", data_type=99, dims=[1], raw_data=b"0")]),
        "unknown type",
    ),
    "no type": (lambda: crafted([], [TensorProto(name="w", dims=[1], raw_data=b"0")]), "without a type"),
    "terabytes declared": (lambda: crafted([], [huge_tensor()]), "100000000 bytes"),
    "terabytes declared in a loop": (
        lambda: crafted([loop(body(*PASS_ON, initializers=[huge_tensor()]))], [GO]),
        "100000000 bytes",
    ),
    "negative extent": (
        lambda: crafted([], [TensorProto(name="w", data_type=FLOAT, dims=[-1], raw_data=b"0")]),
        "100000000 bytes",
    ),
    "many axes": (
        lambda: crafted([], [TensorProto(name="w", data_type=FLOAT, dims=[1] * 99, raw_data=b"0000")]),
        "99 axes",
    ),
    "training": (model_with_training_info, "training"),
    "nested graphs": (lambda: nested_loops(12), "nested more than 8"),
    "loop over an empty body": (lambda: crafted([loop(body())], [GO]), "empty body"),
    "loop over constants": (
        lambda: crafted([loop(body(node("Constant", "", "c", value_float=1.0)))], [GO]),
        "empty body",
    ),
    "empty body that a function may loop over": (
        lambda: calling_f(function("f", node("Neg", "a", "b")), graph=body()),
        "empty body",
    ),
    "function without operators": (
        lambda: calling_f(function("f", node("Constant", "", "b", value_float=1.0))),
        "without operators",
    ),
    "functions that expand exponentially": (nested_functions, "1000000 nodes"),
    "function that calls itself": (lambda: calling_f(function("f", own_node("f", "a", "b"))), "at 'f'"),
    "functions that call each other": (
        lambda: calling_f(function("f", own_node("g", "a", "b")), function("g", own_node("f", "a", "b"))),
        "at '[fg]'",
    ),
    "functions nested too deep": (lambda: nested_functions(12, 1), "at 'f[0-9]+'"),
    "one function twice": (
        lambda: calling_f(function("f", node("Neg", "a", "b")), function("f", node("Abs", "a", "b"))),
        "two functions named 'f'",
    ),
    "function in place of a standard operator": (
        lambda: crafted(
            [node("Neg", "x", "y")], functions=[function("Neg", node("Abs", "a", "b"), domain="")]
        ),
        "'Neg' in the domain",
    ),
    "grid of terabytes": (lambda: crafted(grid="[1000000, 1000000]"), "one sample"),
    "grid of strings": (lambda: crafted(grid='["a", 2]'), "damaged"),
    "layout that is a number": (lambda: crafted(layout="3"), "damaged"),
    "deeply nested metadata": (lambda: crafted(parity="[" * 100_000), "damaged"),
}


@pytest.mark.parametrize("case", MODELS)
def test_models_are_refused(case: str) -> None:
    make, message = MODELS[case]
    data = make().SerializeToString()
    with pytest.raises(InputError, match=message):
        Session(data, "cpu", max_bytes=10**8)


X = np.arange(4, dtype=np.float32).reshape(2, 2)


def test_honest_models_run() -> None:
    """The refusals above are due to what each model holds, not to how these models are built."""
    np.testing.assert_array_equal(Session(crafted().SerializeToString(), "cpu")(X), X)
    twice = function("g", own_node("f", "a", "t"), own_node("f", "t", "b"))
    negated = crafted(
        [own_node("g", "x", "t"), own_node("f", "t", "y")],
        functions=[function("f", node("Neg", "a", "b")), twice],
        domains=("", "own"),
    )
    np.testing.assert_array_equal(Session(negated.SerializeToString(), "cpu")(X), -X)
    three = helper.make_tensor("three", INT64, [], [3])
    doubled = node("Add", "v v", "v_out")
    looped = crafted([node("Loop", "three go x", "y", body=body(PASS_ON[0], doubled))], [GO, three])
    np.testing.assert_array_equal(Session(looped.SerializeToString(), "cpu")(X), 8 * X)


def test_timeout_stops_an_endless_loop() -> None:
    session = Session(crafted([loop(body(*PASS_ON))], [GO]).SerializeToString(), "cpu", timeout=0.3)
    for _ in range(2):
        with pytest.raises(MDLSTMError, match=r"0\.3 s"):
            session(X)


def with_large_intermediate(count: int) -> bytes:
    """y = x + the sum of `count` zeros that the graph creates when it runs."""
    shape = helper.make_tensor("shape", INT64, [1], [count])
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
    axes = helper.make_tensor("axes", INT64, [len(reduced)], reduced)
    model = crafted([node("ReduceSum", "x axes", "y", keepdims=0)], [axes])
    del model.graph.output[0].type.tensor_type.shape.dim[:]
    model.graph.output[0].type.tensor_type.ClearField("shape")
    with pytest.raises(MDLSTMError, match="for x of shape"):
        Session(model.SerializeToString(), "cpu")(np.zeros((3, 2, 2, 1)))


def test_a_file_is_run_in_the_format_that_was_checked() -> None:
    """ONNX Runtime recognises its own format by four bytes that are free to choose in an ONNX file."""
    data = b"\x12\x0aaaORTM1234" + crafted().SerializeToString()
    assert data[4:8] == b"ORTM"
    np.testing.assert_array_equal(Session(data, "cpu")(X), X)


def test_large_files_are_refused_before_they_are_read(model: Path) -> None:
    with pytest.raises(InputError, match="1000 bytes"):
        Session(model, "cpu", max_bytes=1000)


SEEDS = [
    make().SerializeToString()
    for make in (crafted, lambda: nested_loops(3), lambda: nested_functions(2, 3))
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
    onnx.save(crafted([loop(body(*PASS_ON))], [GO]), "endless.onnx")
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
