"""Models and arrays from strangers: none may run code, read other files, or take the machine down."""

from __future__ import annotations

import io
import struct
import subprocess
import sys
import zipfile
from collections.abc import Callable, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper

from mdlstm_tk.cli import main
from mdlstm_tk.errors import InputError, MDLSTMError
from mdlstm_tk.runtime import Metadata, Session, load_array
from mdlstm_tk.runtime.io.npy import read_capped, read_npy, read_npz
from mdlstm_tk.runtime.security import protobuf as wire
from mdlstm_tk.runtime.security.model_check import check_model
from mdlstm_tk.runtime.security.protobuf import Reader


def npy(shape: str, dtype: str = "<f4", data: bytes = b"", version: bytes = b"\x01\x00") -> bytes:
    """A `.npy` file with a header of one's own."""
    header = f"{{'descr': '{dtype}', 'fortran_order': False, 'shape': {shape}}}\n".encode()
    length = struct.pack("<H" if version == b"\x01\x00" else "<I", len(header))
    return b"\x93NUMPY" + version + length + header + data


class Endless(io.RawIOBase):
    """A stream that starts with some bytes and never ends."""

    def __init__(self, start: bytes) -> None:
        self.start, self.given = start, 0

    def read(self, size: int = -1) -> bytes:
        assert 0 <= size < 2**20, "reads without a bound"
        self.given += size
        data, self.start = self.start[:size], self.start[size:]
        return data + b"\0" * (size - len(data))


ARRAYS = {
    "declares terabytes": (npy("(1000000, 1000000)"), "takes more than"),
    "small numbers that grow as float32": (npy("(400000,)", "|b1", b"\0" * 400000), "takes more than"),
    "negative extent": (npy("(-1,)", data=b"\0" * 4096), "not a complete"),
    "numbers that are none": (npy("(True, 2.5)"), "not a complete"),
    "pickle": (npy("(1,)", "|O", b"cos\nsystem\n(S'true'\ntR."), "never unpickled"),
    "texts": (npy("(1,)", "<U9", b"\0" * 36), "expected real numbers"),
    "no bytes a number": (npy("(1000000000,)", "|V0"), "expected real numbers"),
    "long header": (b"\x93NUMPY\x02\x00" + struct.pack("<I", 2**31) + b" " * 100, "not a complete"),
    "deep header": (npy("(" * 3000 + ")" * 3000), "not a complete"),
    "unknown version": (npy("(1,)", data=b"\0" * 4, version=b"\x07\x00"), "not a complete"),
    "cut off": (npy("(9, 9)", data=b"\0" * 100), "not a complete"),
}


@pytest.mark.parametrize("case", ARRAYS)
def test_arrays_are_refused_before_they_are_allocated(case: str, tmp_path: Path) -> None:
    data, message = ARRAYS[case]
    path = tmp_path / "x.npy"
    path.write_bytes(data)
    with pytest.raises(InputError, match=message):
        load_array(path, max_bytes=10**6)
    archive = io.BytesIO()
    with zipfile.ZipFile(archive, "w") as file:
        file.writestr("x.npy", data)
    with pytest.raises(InputError, match=message):
        list(read_npz(archive, "x.npz", 10**6))


def test_an_endless_stream_is_read_no_further_than_it_declares() -> None:
    stream = Endless(npy("(3, 5)"))
    np.testing.assert_array_equal(read_npy(stream, "stdin"), np.zeros((3, 5), np.float32))
    assert stream.given < 1000
    with pytest.raises(InputError, match="larger than 1000 bytes; allow more with --max-bytes"):
        read_capped(Endless(b""), "stdin", 1000)


@pytest.mark.parametrize("dtype", [">f8", "<f4", "<f2", "|u1", "<i8", "|b1"])
@pytest.mark.parametrize("order", ["C", "F"])
def test_honest_arrays_come_back(dtype: str, order: str) -> None:
    rng = np.random.default_rng(0)
    a = np.asarray(rng.integers(0, 2, (2, 3, 5)), dtype, order=order)
    file = io.BytesIO()
    np.save(file, a)
    file.seek(0)
    np.testing.assert_array_equal(read_npy(file, "a"), a)
    for save in (np.savez, np.savez_compressed):
        file = io.BytesIO()
        save(file, first=a, second=a[0])
        arrays = dict(read_npz(file, "a.npz"))
        assert list(arrays) == ["first", "second"]
        np.testing.assert_array_equal(arrays["first"], a)
        np.testing.assert_array_equal(arrays["second"], a[0])


def zeros_archive(compression: int = zipfile.ZIP_DEFLATED, members: int = 1) -> bytearray:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", compression) as archive:
        for k in range(members):
            archive.writestr(f"{k}.npy", npy("(1000, 1000)", data=bytes(4_000_000)))
    return bytearray(file.getvalue())


def test_zip_bombs_are_refused() -> None:
    bomb = zeros_archive()
    assert len(bomb) < 20_000
    with pytest.raises(InputError, match="unpacks to more than 3000000 bytes"):
        list(read_npz(io.BytesIO(bomb), "bomb", 3_000_000))
    with pytest.raises(InputError, match="unpacks to more than 6000000 bytes"):
        list(read_npz(io.BytesIO(zeros_archive(members=2)), "bomb", 6_000_000))
    with pytest.raises(InputError, match="packed in another way"):
        list(read_npz(io.BytesIO(zeros_archive(zipfile.ZIP_BZIP2)), "bomb"))
    # A size in the list that is smaller than what the member unpacks to.
    directory = bomb.rindex(b"PK\x01\x02")
    bomb[directory + 24 : directory + 28] = struct.pack("<I", 1000)
    with pytest.raises(InputError, match=r"not a complete|damaged"):
        list(read_npz(io.BytesIO(bomb), "bomb", 3_000_000))


def test_an_archive_of_too_many_members_is_refused_before_they_are_listed() -> None:
    listing = struct.pack("<4s42x", b"PK\x01\x02") * 30_000
    end = struct.pack("<4s4xHHIIH", b"PK\x05\x06", 30_000, 30_000, len(listing), 0, 0)
    with pytest.raises(InputError, match="lists more members"):
        list(read_npz(io.BytesIO(listing + end), "many"))


@pytest.mark.parametrize("where", range(0, 400, 7))
def test_damaged_archives_end_in_an_error_or_the_same_numbers(where: int) -> None:
    file = io.BytesIO()
    a = np.random.default_rng(0).random((5, 8), dtype=np.float32)
    np.savez_compressed(file, a=a)
    data = bytearray(file.getvalue())
    data[where % len(data)] ^= 0x41
    try:
        for _, array in read_npz(io.BytesIO(data), "x"):
            np.testing.assert_array_equal(array, a)
    except InputError:
        pass


FLOAT, INT64, BOOL = TensorProto.FLOAT, TensorProto.INT64, TensorProto.BOOL


def info(name: str, kind: int = FLOAT, shape: tuple[int, ...] | None = None) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(name, kind, shape)


def node(operator: str, inputs: str, outputs: str, **attributes: Any) -> onnx.NodeProto:
    return helper.make_node(operator, inputs.split(" "), outputs.split(" "), **attributes)


def crafted(
    nodes: Sequence[onnx.NodeProto] = (),
    initializers: Sequence[onnx.TensorProto] = (),
    functions: Sequence[onnx.FunctionProto] = (),
    domains: Sequence[str] = ("",),
    **metadata: Any,
) -> onnx.ModelProto:
    """A model from x to y (N, 2, 2, 1) that passes for one of ours but for what is in it."""
    nodes = nodes or [node("Identity", "x", "y")]
    shape = (None, 2, 2, 1)
    graph = helper.make_graph(
        nodes, "g", [info("x", FLOAT, shape)], [info("y", FLOAT, shape)], initializers
    )
    opsets = [helper.make_opsetid(domain, 18 if domain == "" else 1) for domain in domains]
    model = helper.make_model(graph, opset_imports=opsets, ir_version=10, functions=list(functions))
    about = Metadata("0", (2, 2), "unrolled", "N H W C", 1, 1)
    helper.set_model_props(model, about.to_props() | {f"mdlstm.{k}": v for k, v in metadata.items()})
    return model


def external(name: str = "w") -> onnx.TensorProto:
    tensor = helper.make_tensor(name, FLOAT, [1], [0.0])
    tensor.ClearField("float_data")
    tensor.data_location = TensorProto.EXTERNAL
    for key, value in (("location", "/etc/passwd"), ("offset", "0"), ("length", "4")):
        tensor.external_data.add(key=key, value=value)
    return tensor


def huge(name: str = "w") -> onnx.TensorProto:
    return TensorProto(name=name, data_type=FLOAT, dims=[10**6, 10**6], raw_data=b"\0\0\0\0")


def body(*nodes: onnx.NodeProto, initializers: Sequence[onnx.TensorProto] = ()) -> onnx.GraphProto:
    """A Loop's body from (i, go, v) to (go_on, v_out)."""
    outputs = [info("go_on", BOOL, ()), info("v_out")]
    inputs = [info("i", INT64, ()), info("go", BOOL, ()), info("v")]
    if not nodes:
        outputs = inputs[1:]
    return helper.make_graph(nodes, "body", inputs, outputs, initializers)


def loop(graph: onnx.GraphProto) -> onnx.NodeProto:
    return node("Loop", " go x", "y", body=graph)


GO = helper.make_tensor("go", BOOL, [], [True])
ON = (node("Identity", "go", "go_on"), node("Identity", "v", "v_out"))


def function(name: str, *nodes: onnx.NodeProto, domain: str = "own", **keywords: Any) -> onnx.FunctionProto:
    opsets = [helper.make_opsetid("", 18), helper.make_opsetid("own", 1)]
    return helper.make_function(domain, name, ["a"], ["b"], nodes, opsets, **keywords)


def own(name: str, inputs: str, outputs: str, **keywords: Any) -> onnx.NodeProto:
    return node(name, inputs, outputs, domain="own", **keywords)


def sparse() -> onnx.SparseTensorProto:
    values, indices = helper.make_tensor("w", FLOAT, [1], [1.0]), helper.make_tensor("i", INT64, [1], [0])
    return helper.make_sparse_tensor(values, indices, [10**9])


def sparse_initializer() -> onnx.ModelProto:
    model = crafted()
    model.graph.sparse_initializer.append(sparse())
    return model


def trained() -> onnx.ModelProto:
    model = crafted()
    model.training_info.add().algorithm.CopyFrom(model.graph)
    return model


def deep(levels: int) -> onnx.ModelProto:
    graph = body(*ON)
    for _ in range(levels):
        graph = body(node("Loop", " go v", "v_out", body=graph), ON[0], initializers=[GO])
    return crafted([loop(graph)], [GO])


def laughs(levels: int = 7, calls: int = 10) -> onnx.ModelProto:
    """Functions, each of which calls the next ten times."""
    functions = [function(f"f{levels}", node("Neg", "a", "b"))]
    names = ["a", *(f"t{k}" for k in range(1, calls)), "b"]
    for level in range(levels):
        chain = [own(f"f{level + 1}", *pair) for pair in pairwise(names)]
        functions.append(function(f"f{level}", *chain))
    return crafted([own("f0", "x", "y")], functions=functions, domains=("", "own"))


def called(*functions: onnx.FunctionProto, **attributes: Any) -> onnx.ModelProto:
    return crafted([own("f", "x", "y", **attributes)], functions=functions, domains=("", "own"))


OUTSIDE = "data lies outside the file"
MODELS: dict[str, tuple[Callable[[], onnx.ModelProto], str]] = {
    "external initializer": (lambda: crafted([node("Add", "x w", "y")], [external()]), OUTSIDE),
    "external constant": (
        lambda: crafted([node("Constant", "", "w", value=external()), node("Add", "x w", "y")]),
        OUTSIDE,
    ),
    "external in a loop": (lambda: crafted([loop(body(*ON, initializers=[external()]))], [GO]), OUTSIDE),
    "external in a function": (
        lambda: called(function("f", node("Constant", "", "w", value=external()), node("Add", "a w", "b"))),
        OUTSIDE,
    ),
    "external in a function's default": (
        lambda: called(
            function(
                "f",
                node("Neg", "a", "b"),
                attribute_protos=[helper.make_attribute("t", external())],
            )
        ),
        OUTSIDE,
    ),
    "external in a list of tensors": (
        lambda: called(function("f", node("Neg", "a", "b")), t=[external()]),
        OUTSIDE,
    ),
    "sparse initializer": (sparse_initializer, "a sparse tensor"),
    "sparse constant": (
        lambda: crafted([node("Constant", "", "w", sparse_value=sparse()), node("Identity", "x", "y")]),
        "a sparse tensor",
    ),
    "operator of Microsoft's that reads files": (
        lambda: crafted(
            [node("EPContext", "x", "y", domain="com.microsoft")], domains=("", "com.microsoft")
        ),
        "the operator 'EPContext' of domain 'com.microsoft'",
    ),
    "Python in the graph": (
        lambda: crafted(
            [node("PyOp", "x", "y", domain="ai.onnx.contrib")], domains=("", "ai.onnx.contrib")
        ),
        "the operator 'PyOp' of domain 'ai.onnx.contrib'",
    ),
    "operator on texts": (
        lambda: crafted([node("StringNormalizer", "x", "y")]),
        "the operator 'StringNormalizer'",
    ),
    "operator in a loop": (
        lambda: crafted([loop(body(*ON, node("ImageDecoder", "v", "p")))], [GO]),
        "the operator 'ImageDecoder'",
    ),
    "operator in a function": (
        lambda: called(function("f", node("RandomNormalLike", "a", "b"))),
        "the operator 'RandomNormalLike'",
    ),
    "name that plays with the terminal": (
        lambda: crafted([node("\x1b[2J", "x", "y")]),
        r"the operator '\\x1b\[2J'",
    ),
    "texts": (lambda: crafted([], [helper.make_tensor("w", TensorProto.STRING, [1], [b"a"])]), "of texts"),
    "unknown type": (
        lambda: crafted([], [TensorProto(name="w", data_type=99, dims=[1], raw_data=b"0")]),
        "an unknown type",
    ),
    "no type": (lambda: crafted([], [TensorProto(name="w", dims=[1], raw_data=b"0")]), "without a type"),
    "terabytes declared": (lambda: crafted([], [huge()]), "take more than"),
    "terabytes declared in a loop": (
        lambda: crafted([loop(body(*ON, initializers=[huge()]))], [GO]),
        "take more than",
    ),
    "negative extent": (
        lambda: crafted([], [TensorProto(name="w", data_type=FLOAT, dims=[-1], raw_data=b"0")]),
        "take more than",
    ),
    "many axes": (
        lambda: crafted([], [TensorProto(name="w", data_type=FLOAT, dims=[1] * 99, raw_data=b"0000")]),
        "99 axes",
    ),
    "training": (trained, "a training part"),
    "graphs in graphs": (lambda: deep(12), "graphs in graphs"),
    "loop around nothing": (lambda: crafted([loop(body())], [GO]), "could not be stopped"),
    "loop around constants": (
        lambda: crafted([loop(body(node("Constant", "", "c", value_float=1.0)))], [GO]),
        "could not be stopped",
    ),
    "loop in a function around nothing": (
        lambda: called(function("f", node("Neg", "a", "b")), graph=body()),
        "could not be stopped",
    ),
    "loop around a function that does nothing": (
        lambda: called(function("f", node("Constant", "", "b", value_float=1.0))),
        "does nothing",
    ),
    "functions that multiply": (laughs, "more than 1000000 nodes"),
    "function that calls itself": (lambda: called(function("f", own("f", "a", "b"))), "call each other"),
    "functions that call each other": (
        lambda: called(function("f", own("g", "a", "b")), function("g", own("f", "a", "b"))),
        "call each other",
    ),
    "functions in functions": (lambda: laughs(12, 1), "call each other too deep"),
    "one function twice": (
        lambda: called(function("f", node("Neg", "a", "b")), function("f", node("Abs", "a", "b"))),
        "two functions named 'f'",
    ),
    "function in place of an operator": (
        lambda: crafted(
            [node("Neg", "x", "y")], functions=[function("Neg", node("Abs", "a", "b"), domain="")]
        ),
        "in place of a standard operator",
    ),
    "grid of terabytes": (lambda: crafted(grid="[1000000, 1000000]"), "one sample .* takes more than"),
    "grid in words": (lambda: crafted(grid='["a", 2]'), "damaged"),
    "layout of a number": (lambda: crafted(layout="3"), "damaged"),
    "deep metadata": (lambda: crafted(parity="[" * 100_000), "damaged"),
}


@pytest.mark.parametrize("case", MODELS)
def test_models_are_refused(case: str) -> None:
    make, message = MODELS[case]
    data = make().SerializeToString()
    with pytest.raises(InputError, match=message):
        Session(data, "cpu", max_bytes=10**8)


X = np.arange(4, dtype=np.float32).reshape(2, 2)


def test_what_is_honest_runs() -> None:
    """So the refusals above are for what was put in, not for how these models are made."""
    np.testing.assert_array_equal(Session(crafted().SerializeToString(), "cpu")(X), X)
    twice = function("g", own("f", "a", "t"), own("f", "t", "b"))
    negated = crafted(
        [own("g", "x", "t"), own("f", "t", "y")],
        functions=[function("f", node("Neg", "a", "b")), twice],
        domains=("", "own"),
    )
    np.testing.assert_array_equal(Session(negated.SerializeToString(), "cpu")(X), -X)
    three = helper.make_tensor("three", INT64, [], [3])
    doubled = node("Add", "v v", "v_out")
    looped = crafted([node("Loop", "three go x", "y", body=body(ON[0], doubled))], [GO, three])
    np.testing.assert_array_equal(Session(looped.SerializeToString(), "cpu")(X), 8 * X)


def test_an_endless_loop_is_stopped() -> None:
    session = Session(crafted([loop(body(*ON))], [GO]).SerializeToString(), "cpu", timeout=0.3)
    for _ in range(2):
        with pytest.raises(MDLSTMError, match=r"stopped after 0.3 s; allow more with --timeout"):
            session(X)


def grown(count: int) -> bytes:
    """y = x + the sum of `count` zeros that the graph makes itself."""
    shape = helper.make_tensor("shape", INT64, [1], [count])
    nodes = [node("ConstantOfShape", "shape", "big"), node("ReduceSum", "big", "sum", keepdims=0)]
    return crafted([*nodes, node("Add", "x sum", "y")], [shape]).SerializeToString()


def test_what_grows_inside_the_graph_ends_in_an_error() -> None:
    with pytest.raises(MDLSTMError, match="the model needs more memory than there is"):
        Session(grown(10**12), "cpu")(X)
    np.testing.assert_array_equal(Session(grown(1000), "cpu")(X), X)


def test_there_is_a_limit_below_what_the_machine_has(tmp_path: Path) -> None:
    """In a process of its own, with a small limit: it is set once a process, and a large one cannot be
    tried without harm."""
    (tmp_path / "m.onnx").write_bytes(grown(2**26))
    code = """if True:
        import sys, numpy
        from mdlstm_tk.errors import MDLSTMError
        from mdlstm_tk.runtime import providers as start
        from mdlstm_tk.runtime import Session
        start.MEMORY_SHARE = int(sys.argv[1]) * 2**20 / start._memory()
        try:
            print(Session("m.onnx", "cpu")(numpy.ones((2, 2))).tolist())
        except MDLSTMError as error:
            print(error)
    """

    def run(megabytes: int) -> str:
        command = [sys.executable, "-c", code, str(megabytes)]
        return subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True).stdout

    assert "the model needs more memory than there is" in run(100)
    assert run(600).strip() == "[[1.0, 1.0], [1.0, 1.0]]"


@pytest.mark.parametrize("reduced", [(0, 1, 2, 3), (0,), (1, 2, 3)], ids=str)
def test_outputs_of_other_shapes_than_promised_are_refused(reduced: tuple[int, ...]) -> None:
    axes = helper.make_tensor("axes", INT64, [len(reduced)], reduced)
    model = crafted([node("ReduceSum", "x axes", "y", keepdims=0)], [axes])
    del model.graph.output[0].type.tensor_type.shape.dim[:]
    model.graph.output[0].type.tensor_type.ClearField("shape")
    with pytest.raises(MDLSTMError, match="gave an array of shape"):
        Session(model.SerializeToString(), "cpu")(np.zeros((3, 2, 2, 1)))


def test_a_model_in_another_format_behind_a_checked_one_is_refused() -> None:
    """ONNX Runtime takes a file for one of its own format by four bytes that ONNX lets anybody choose."""
    data = b"\x12\x0aaaORTM1234" + crafted().SerializeToString()
    assert data[4:8] == b"ORTM"
    np.testing.assert_array_equal(Session(data, "cpu")(X), X)


def test_files_are_measured_before_they_are_read(model: Path) -> None:
    with pytest.raises(InputError, match="is larger than 1000 bytes; allow more with --max-bytes"):
        Session(model, "cpu", max_bytes=1000)


@settings(max_examples=300, deadline=None)
@given(st.binary(max_size=200))
def test_random_bytes_are_refused(data: bytes) -> None:
    with pytest.raises(InputError):
        check_model(data, "m")


SEEDS = [make().SerializeToString() for make in (crafted, lambda: deep(3), lambda: laughs(2, 3))]


@settings(max_examples=400, deadline=None)
@given(st.sampled_from(SEEDS), st.data())
def test_damaged_models_end_in_an_error_or_run(seed: bytes, data: st.DataObject) -> None:
    """Cut off, with bits flipped or bytes put in."""
    changed = bytearray(seed[: data.draw(st.integers(0, len(seed)))] if data.draw(st.booleans()) else seed)
    for _ in range(data.draw(st.integers(0, 4))):
        where = data.draw(st.integers(0, max(0, len(changed) - 1)))
        changed[where : where + data.draw(st.integers(0, 1))] = data.draw(st.binary(min_size=1, max_size=3))
    try:
        y = Session(bytes(changed), "cpu", timeout=5)(X)
    except MDLSTMError:
        return
    assert isinstance(y, np.ndarray)


@settings(max_examples=200, deadline=None)
@given(st.lists(st.tuples(st.integers(1, 2**29 - 1), st.integers(0, 2**64 - 1) | st.binary(max_size=300))))
def test_the_reader_reads_what_is_written(fields: list[tuple[int, int | bytes]]) -> None:
    written = b"".join(
        varint(number << 3) + varint(value)
        if isinstance(value, int)
        else varint(number << 3 | 2) + varint(len(value)) + value
        for number, value in fields
    )
    read = [
        (number, written[a:b] if kind == 2 else a)
        for number, kind, a, b in Reader(written, "m").fields(0, len(written))
    ]
    assert read == fields


def varint(value: int) -> bytes:
    parts = []
    while value > 127:
        parts.append(value & 127 | 128)
        value >>= 7
    return bytes([*parts, value])


@pytest.mark.parametrize(
    "data",
    [
        b"\x80",
        b"\x0a",
        b"\x0a\x05abc",
        b"\x08" + b"\xff" * 11,
        b"\x08" + b"\xff" * 9 + b"\x7f",
        b"\x0b\x0c",
        b"\x09abc",
        b"\x02\x00",
        b"\x0a" + b"\xff" * 9 + b"\x01",
        b"\xf8\xff\xff\xff\xff\x01\x00",
    ],
    ids=repr,
)
def test_the_reader_refuses_what_makes_no_sense(data: bytes) -> None:
    with pytest.raises(InputError, match="makes no sense at byte"):
        list(Reader(data, "m").fields(0, len(data)))


def test_the_reader_has_an_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(wire, "MAX_FIELDS", 1000)
    with pytest.raises(InputError, match="more than 1000 fields"):
        check_model(b"\x08\x01" * 2000, "m")


def test_the_command_line_keeps_the_limits(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    onnx.save(crafted([loop(body(*ON))], [GO]), "endless.onnx")
    np.save("x.npy", X)

    def fails(*arguments: str) -> tuple[object, str]:
        with pytest.raises(SystemExit) as ended:
            main(list(arguments))
        return ended.value.code, capfd.readouterr().err

    code, err = fails("infer", "x.npy", "-m", "endless.onnx", "--timeout", "0.3")
    assert (code, "the model was stopped after 0.3 s" in err) == (1, True), err
    code, err = fails("infer", "x.npy", "-m", "endless.onnx", "--max-bytes", "200")
    assert (code, "endless.onnx is larger than 200 bytes" in err) == (2, True), err
    code, err = fails("info", "endless.onnx", "--max-bytes", "200")
    assert (code, "endless.onnx is larger than 200 bytes" in err) == (2, True), err
    assert not Path("x.out.npy").exists()
