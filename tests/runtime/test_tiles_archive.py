"""Archives that are damaged or contradict themselves are refused in one line."""

from __future__ import annotations

import io
import json
import zipfile
from collections.abc import Callable
from typing import Any

import numpy as np
import onnx
import pytest
from helpers.tiled_models import downward, segmenter

from mdlstm_tk.errors import MDLSTMError
from mdlstm_tk.runtime import describe_model
from mdlstm_tk.runtime.tiles.archive import INDEX
from mdlstm_tk.runtime.tiles.session import TiledSession

SWEEP = "stage-0/sweep-0.onnx"
OTHER = {SWEEP: "stage-0/sweep-1.onnx", "stage-0/sweep-1.onnx": SWEEP}
Members = dict[str, bytes]
Index = dict[str, Any]


def members_of(model: Any) -> Members:
    with zipfile.ZipFile(model.path) as file:
        return {name: file.read(name) for name in file.namelist()}


def packed(members: Members, compression: int = zipfile.ZIP_STORED) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", compression) as file:
        for name, data in members.items():
            file.writestr(name, data)
    return buffer.getvalue()


def check_refused(data: bytes, words: str) -> None:
    """An archive is refused in one line, at the latest by a run."""
    with pytest.raises(MDLSTMError, match=words) as caught, TiledSession(data, "cpu") as session:
        session(np.zeros((9, 8, session.metadata.channels)), tile=4)
    assert "\n" not in str(caught.value)


def with_window(window: list[int]) -> Callable[[Index], object]:
    return lambda index: index["metadata"].update({"mdlstm.window": json.dumps(window)})


INDEX_CHANGES: dict[str, tuple[Callable[[Index], object], str]] = {
    "another schema": (lambda index: index.update(schema=2), "^the model has the schema 2, expected 1"),
    "no stages": (lambda index: index.update(stages=[]), "there are no stages"),
    "no metadata": (lambda index: index.pop("metadata"), "no 'metadata'"),
    "another form": (
        lambda index: index["metadata"].update({"mdlstm.form": '"scan"'}),
        "metadata are not those of a tiled export",
    ),
    "no field": (lambda index: index["stages"][0].pop("sum"), "no 'sum'"),
    "a sum of text": (lambda index: index["stages"][0].update(sum="false"), "sum must be true or false"),
    "a negative window": (lambda index: index["stages"][0].update(window=[-2, 2]), "at least 1"),
    "a window of one axis": (lambda index: index["stages"][0].update(window=[2]), "2 integers"),
    "another window": (lambda index: index["stages"][0].update(window=[1, 2]), "contradicts its stages"),
    "a smaller window of y": (with_window([1, 1]), "contradicts its stages"),
    "a larger window of y": (with_window([4, 4]), "contradicts its stages"),
    "units that are a bool": (lambda index: index["stages"][0].update(units=True), "integers of at least"),
    "other units": (lambda index: index["stages"][0].update(units=5), "ONNX Runtime failed|do not fit"),
    "other channels": (lambda index: index["stages"][1].update(channels=3), "3 channels and gets 6"),
    "other features": (lambda index: index["stages"][1].update(features=5), "10 features and no head"),
    "a direction of 0": (lambda index: index["stages"][0]["sweeps"][0].update(direction=[0, 1]), "1 or -1"),
    "a missing graph": (lambda index: index["stages"][0]["sweeps"][0].update(file="/etc/passwd"), "listed"),
    "pool of an axis that is none": (lambda index: index.update(pool=[7]), "for 2 axes"),
    "a missing head": (lambda index: index.update(head={"file": "head.onnx"}), "not in both"),
    "another upsample": (lambda index: index.update(upsample=[2, 2]), "contradicts"),
}


@pytest.mark.parametrize("name", INDEX_CHANGES)
def test_a_wrong_index_is_refused(name: str) -> None:
    change, words = INDEX_CHANGES[name]
    members = members_of(downward())
    index = json.loads(members[INDEX])
    change(index)
    check_refused(packed(members | {INDEX: json.dumps(index).encode()}), words)


def flipped(members: Members) -> bytes:
    """A bit of a graph is wrong, so that its checksum is, too."""
    data = bytearray(packed(members))
    data[data.index(members[SWEEP]) + 100] ^= 1
    return bytes(data)


def test_max_bytes_is_the_limit_of_the_file_that_is_described(monkeypatch: pytest.MonkeyPatch) -> None:
    path = downward().path
    monkeypatch.setattr("mdlstm_tk.runtime.io.npy.MAX_BYTES", 10)
    with pytest.raises(MDLSTMError, match="larger than 10 bytes"):
        describe_model(path)
    description = describe_model(path, max_bytes=2**30)
    assert (description["form"], description["kind"]) == ("tiles", None)


def changed_graph(members: Members, change: Callable[[onnx.ModelProto], object]) -> bytes:
    model = onnx.load_model_from_string(members[SWEEP])
    change(model)
    return packed(members | {SWEEP: model.SerializeToString()})


def add_loop(model: onnx.ModelProto) -> None:
    body = onnx.helper.make_graph([], "body", [], [])
    model.graph.node.append(onnx.helper.make_node("Loop", [], [], body=body))


def transpose_face(model: onnx.ModelProto) -> None:
    """A graph may return what its declaration does not say."""
    for node in model.graph.node:
        node.output[:] = ["first" if name == "h0_n" else name for name in node.output]
    node = onnx.helper.make_node("Transpose", ["first"], ["h0_n"], perm=[0, 2, 1], name="t")
    model.graph.node.append(node)


def rename_y(members: Members) -> bytes:
    model = onnx.load_model_from_string(members["head.onnx"])
    for node in model.graph.node:
        node.output[:] = ["z" if name == "y" else name for name in node.output]
    model.graph.output[0].name = "z"
    return packed(members | {"head.onnx": model.SerializeToString()})


ARCHIVES: dict[str, tuple[Callable[[Members], bytes], str]] = {
    "no archive": (lambda members: b"x" * 100, "is no tiled export, or damaged"),
    "cut off": (lambda members: packed(members)[:-30], "is no tiled export, or damaged"),
    "no index": (lambda members: packed({SWEEP: members[SWEEP]}), "it holds no tiles.json"),
    "an index that is no JSON": (lambda members: packed(members | {INDEX: b"{"}), "is damaged .tiles.json"),
    "an index that is nested": (lambda members: packed(members | {INDEX: b"[" * 10**6}), "is damaged"),
    "compressed members": (lambda members: packed(members, zipfile.ZIP_DEFLATED), "is compressed"),
    "a wrong checksum": (flipped, "is no tiled export, or damaged"),
    "a member too many": (lambda members: packed(members | {"../more": b""}), "but not in both"),
    "exchanged graphs": (
        lambda members: packed(
            members_of(segmenter()) | {name: members_of(segmenter())[OTHER[name]] for name in OTHER}
        ),
        "than tiles.json says",
    ),
    "a graph that is none": (lambda members: packed(members | {SWEEP: b"x" * 50}), f"{SWEEP} in the model"),
    "a graph with a loop": (lambda members: changed_graph(members, add_loop), "the operator 'Loop'"),
    "a graph of another stage": (
        lambda members: packed(members | {SWEEP: members["stage-1/sweep-0.onnx"]}),
        "than tiles.json says",
    ),
    "faces of other shapes": (
        lambda members: changed_graph(members, transpose_face),
        "for 'h0_n', expected float32 of",
    ),
    "a head without y": (lambda members: rename_y(members_of(segmenter())), "the head returned no y"),
    "a sweep as head": (
        lambda members: packed(members_of(segmenter()) | {"head.onnx": members[SWEEP]}),
        "ONNX Runtime failed",
    ),
}


@pytest.mark.parametrize("name", ARCHIVES)
def test_a_damaged_archive_is_refused(name: str) -> None:
    make, words = ARCHIVES[name]
    check_refused(make(members_of(downward())), words)
