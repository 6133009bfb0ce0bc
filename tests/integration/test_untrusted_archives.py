"""Tiled exports from strangers: whatever an archive holds, the outcome is one line."""

from __future__ import annotations

import io
import json
import warnings
import zipfile
from collections.abc import Callable
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import helper

from mdlstm_tk import MDLSTM
from mdlstm_tk.errors import InputError, MDLSTMError
from mdlstm_tk.export import export_tiles
from mdlstm_tk.runtime.tiles.session import TiledSession

INDEX = "tiles.json"
SWEEP = "stage-0/sweep-0.onnx"
Members = dict[str, bytes]


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Members:
    """The members of an export with two layers and a window."""
    path = tmp_path_factory.mktemp("archive") / "m.tiles"
    export_tiles(MDLSTM(1, 2, num_layers=2, window=2), path)
    with zipfile.ZipFile(path) as file:
        return {name: file.read(name) for name in file.namelist()}


def packed(members: Members, compression: int = zipfile.ZIP_STORED) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", compression) as file:
        for name, data in members.items():
            file.writestr(name, data)
    return buffer.getvalue()


def with_index(members: Members, change: Callable[[Any], object]) -> bytes:
    """The archive with another tiles.json."""
    index = json.loads(members[INDEX])
    change(index)
    return packed(members | {INDEX: json.dumps(index).encode()})


def refusal(data: bytes) -> str:
    with pytest.raises(InputError) as caught:
        TiledSession(data, "cpu")
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_the_members_as_they_are_make_a_model(exported: Members) -> None:
    with TiledSession(packed(exported), "cpu") as session:
        assert session(np.zeros((5, 6)), tile=2).shape == (3, 3, 2)


INDEX_CHANGES: dict[str, tuple[Callable[[Any], object], str]] = {
    "another schema": (lambda index: index.update(schema=2), "another schema than 1"),
    "no schema": (lambda index: index.pop("schema"), "another schema than 1"),
    "no stages": (lambda index: index.update(stages=[]), "a list of 1 to"),
    "no metadata": (lambda index: index.pop("metadata"), "no 'metadata'"),
    "metadata that are numbers": (lambda index: index.update(metadata={"mdlstm.schema": 2}), "no texts"),
    "another form": (
        lambda index: index["metadata"].update({"mdlstm.form": '"scan"'}),
        "metadata that are not those of a tiled export",
    ),
    "control characters": (
        lambda index: index["metadata"].update({"mdlstm.task": '"\\u001b[2J"'}),
        "the metadata field 'task'",
    ),
    "a huge window": (lambda index: index["stages"][0].update(window=[2**40, 1]), "an integer from 1 to"),
    "a negative window": (lambda index: index["stages"][0].update(window=[-2, 2]), "an integer from 1 to"),
    "a window of one axis": (lambda index: index["stages"][0].update(window=[2]), "a list of 2 to 2"),
    "units that are a bool": (lambda index: index["stages"][0].update(units=True), "an integer from 1 to"),
    "another number of channels": (lambda index: index["stages"][1].update(channels=3), "3 channels"),
    "other features": (lambda index: index["stages"][1].update(features=5), "no head, and 5 features"),
    "other units": (lambda index: index["stages"][0].update(units=2**30), "an integer from 1 to"),
    "a direction of 0": (lambda index: index["stages"][0]["sweeps"][0].update(direction=[0, 1]), "of 0"),
    "too many sweeps": (
        lambda index: index["stages"][0].update(sweeps=index["stages"][0]["sweeps"] * 1000),
        "a list of 1 to 16",
    ),
    "a graph that is missing": (
        lambda index: index["stages"][0]["sweeps"][0].update(file="stage-9/sweep-0.onnx"),
        "is named in tiles.json and missing",
    ),
    "a path outside": (
        lambda index: index["stages"][0]["sweeps"][0].update(file="/etc/passwd"),
        "is named in tiles.json and missing",
    ),
    "pool of an axis that is none": (lambda index: index.update(pool=[7]), "an integer from 0 to 1"),
    "pool twice": (lambda index: index.update(pool=[0, 0]), "an axis twice in pool"),
    "a head that is missing": (lambda index: index.update(head={"file": "head.onnx"}), "and missing"),
    "a head without a file": (lambda index: index.update(head={}), "no 'file'"),
    "an upsample of text": (lambda index: index.update(upsample=["2", "2"]), "an integer from 1 to"),
}


@pytest.mark.parametrize("name", INDEX_CHANGES)
def test_a_wrong_index_is_refused(name: str, exported: Members) -> None:
    change, message = INDEX_CHANGES[name]
    assert message in refusal(with_index(exported, change))


def duplicated(members: Members) -> bytes:
    buffer = io.BytesIO()
    with warnings.catch_warnings(), zipfile.ZipFile(buffer, "w") as file:
        warnings.simplefilter("ignore")
        for name, data in [*members.items(), (SWEEP, members[SWEEP])]:
            file.writestr(name, data)
    return buffer.getvalue()


def overlapping(members: Members) -> bytes:
    """Each entry of the directory leads to the same bytes: small files that unpack to large ones."""
    data = bytearray(packed(members | {f"{k}.onnx": members[SWEEP] for k in range(3)}))
    with zipfile.ZipFile(io.BytesIO(bytes(data))) as file:
        first = file.getinfo("0.onnx").header_offset
        last = file.getinfo("2.onnx").header_offset
    at = data.rindex(last.to_bytes(4, "little"))
    data[at : at + 4] = first.to_bytes(4, "little")
    return bytes(data)


def flipped(members: Members) -> bytes:
    """A bit of a graph is wrong, so that its checksum is, too."""
    data = bytearray(packed(members))
    data[data.index(members[SWEEP]) + 100] ^= 1
    return bytes(data)


ARCHIVES: dict[str, tuple[Callable[[Members], bytes], str]] = {
    "no archive": (lambda members: b"x" * 100, "is no tiled export, or damaged"),
    "nothing": (lambda members: b"", "is no tiled export, or damaged"),
    "cut off": (lambda members: packed(members)[:-30], "is no tiled export, or damaged"),
    "no index": (lambda members: packed({SWEEP: members[SWEEP]}), "it holds no tiles.json"),
    "an index that is no JSON": (lambda members: packed(members | {INDEX: b"{"}), "is not JSON"),
    "an index that is nested": (lambda members: packed(members | {INDEX: b"[" * 10**6}), "is not JSON"),
    "an index that is a list": (lambda members: packed(members | {INDEX: b"[]"}), "another schema"),
    "a large index": (lambda members: packed(members | {INDEX: b" " * (2**23 + 1)}), "more than 8388608"),
    "compressed members": (lambda members: packed(members, zipfile.ZIP_DEFLATED), "is compressed"),
    "a duplicate member": (duplicated, "two of one name"),
    "members that overlap": (overlapping, "damaged"),
    "a wrong checksum": (flipped, "is no tiled export, or damaged"),
    "a member too many": (lambda members: packed(members | {"more.onnx": b""}), "the other way around"),
    "a name outside": (lambda members: packed(members | {"../evil.onnx": b""}), "damaged"),
    "a name with an escape": (lambda members: packed(members | {"\x1b[2J.onnx": b""}), "'\\x1b[2J.onnx'"),
    "a name that is no model": (lambda members: packed(members | {"run.py": b""}), "the name 'run.py'"),
    "a graph that is none": (lambda members: packed(members | {SWEEP: b"x" * 50}), f"{SWEEP} in the model"),
    "an empty graph": (lambda members: packed(members | {SWEEP: b""}), f"{SWEEP} in the model"),
    "the graph of another stage": (
        lambda members: packed(members | {SWEEP: members["stage-1/sweep-0.onnx"]}),
        "than tiles.json says",
    ),
}


@pytest.mark.parametrize("name", ARCHIVES)
def test_a_damaged_archive_is_refused(name: str, exported: Members) -> None:
    make, message = ARCHIVES[name]
    assert message in refusal(make(exported))


def changed_graph(members: Members, change: Callable[[onnx.ModelProto], object]) -> bytes:
    model = onnx.load_model_from_string(members[SWEEP])
    change(model)
    return packed(members | {SWEEP: model.SerializeToString()})


def add_loop(model: onnx.ModelProto) -> None:
    body = helper.make_graph([], "body", [], [])
    model.graph.node.append(helper.make_node("Loop", [], [], body=body))


def rename_face(model: onnx.ModelProto) -> None:
    for value in (*model.graph.input, *model.graph.node):
        names = value.input if isinstance(value, onnx.NodeProto) else None
        if names is None:
            value.name = "z0" if value.name == "h0" else value.name
        else:
            names[:] = ["z0" if name == "h0" else name for name in names]


@pytest.mark.parametrize(
    ("change", "message"),
    [(add_loop, "the operator 'Loop', which models may not use"), (rename_face, "by its metadata|inputs")],
    ids=["Loop", "another face"],
)
def test_each_graph_passes_the_check_of_all_models(
    change: Callable[[onnx.ModelProto], object], message: str, exported: Members
) -> None:
    found = refusal(changed_graph(exported, change))
    assert SWEEP in found and any(part in found for part in message.split("|"))


def test_faces_of_other_shapes_end_in_one_line(exported: Members) -> None:
    """A graph may return what its declaration does not say."""

    def transpose(model: onnx.ModelProto) -> None:
        for node in model.graph.node:
            node.output[:] = ["first" if name == "h0_n" else name for name in node.output]
        model.graph.node.append(
            helper.make_node("Transpose", ["first"], ["h0_n"], perm=[0, 2, 1], name="t")
        )

    with (
        TiledSession(changed_graph(exported, transpose), "cpu") as session,
        pytest.raises(MDLSTMError, match=r"sweep 0 returned .* for 'h0_n', expected float32 of") as caught,
    ):
        session(np.zeros((5, 9)), tile=4)
    assert "\n" not in str(caught.value)
