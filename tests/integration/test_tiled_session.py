"""Tiled exports under ONNX Runtime give what the network gives on the whole grid."""

from __future__ import annotations

import io
import json
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers.own_cells import register_own_cells
from helpers.tiled_models import classifier, downward, segmenter

from mdlstm_tk.cells import get_cell
from mdlstm_tk.errors import InputError, MDLSTMError
from mdlstm_tk.runtime import TiledSession
from mdlstm_tk.runtime.tiles import stream as stream_module
from mdlstm_tk.runtime.tiles.archive import INDEX
from mdlstm_tk.runtime.tiles.stream import stream_rows

RNG = np.random.default_rng(0)


@pytest.fixture
def own_cells(fresh_registries: None) -> None:
    register_own_cells()


def assert_equal(y: Any, expected: Any) -> None:
    np.testing.assert_allclose(y, expected, rtol=0, atol=1e-5 * max(1, abs(expected).max()), strict=True)


@pytest.mark.parametrize("isolated", [False, True])
def test_tiles_equal_the_whole_grid(isolated: bool, tmp_path: Path) -> None:
    model = segmenter()
    x = RNG.random((37, 45, 3), dtype=np.float32)
    expected = model.whole(x)
    np.save(tmp_path / "x.npy", x)
    with TiledSession(model.path, "cpu", threads=3, isolated=isolated) as session:
        assert session.metadata.form == "tiles"
        first = session(x, tile=8)
        assert_equal(first, expected)
        np.testing.assert_array_equal(session(np.load(tmp_path / "x.npy", mmap_mode="r"), tile=8), first)
        assert_equal(session(np.stack([x, x]), tile=(15, 400)), np.stack([expected, expected]))
    with TiledSession(model.path, "cpu", isolated=isolated) as session:
        np.testing.assert_array_equal(session(x, tile=8), first)
    with pytest.raises(MDLSTMError, match="closed"):
        session(x)


def test_networks_that_average_over_the_grid() -> None:
    model = classifier()
    x = RNG.random((23, 30), dtype=np.float32)
    assert_equal(TiledSession(model.path, "cpu", threads=2)(x, tile=6), model.whole(x[..., None]))


def test_memory_is_bounded_by_smaller_batches() -> None:
    path = segmenter().path
    grid = (4096, 4096)
    assert TiledSession(path, "cpu").plan(grid).batch_size == 4
    small = TiledSession(path, "cpu", max_bytes=2**27 + 2**25)
    assert 1 <= small.plan(grid, 256).batch_size <= 4
    with pytest.raises(InputError, match="smaller --tile"):
        small.plan(grid, 4096)


@pytest.mark.parametrize(
    ("x", "words"),
    [
        (np.zeros(3), "2 grid axes"),
        (np.zeros((4, 4, 2)), "channels"),
        (np.zeros((0, 4, 3)), "positive"),
        (np.full((4, 4, 3), np.nan), "NaN"),
    ],
)
def test_wrong_arrays_are_refused(x: Any, words: str) -> None:
    with pytest.raises(InputError, match=words):
        TiledSession(segmenter().path, "cpu")(x)


def changed(data: bytes, change: Any) -> bytes:
    """An archive with another index or other members."""
    with zipfile.ZipFile(io.BytesIO(data)) as file:
        members = {name: file.read(name) for name in file.namelist()}
    index = json.loads(members[INDEX])
    change(index, members)
    if INDEX in members:
        members[INDEX] = json.dumps(index).encode()
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as file:
        for name, content in members.items():
            file.writestr(name, content)
    return buffer.getvalue()


def swap_heads(index: Any, members: dict[str, bytes]) -> None:
    members[index["head"]["file"]] = members[index["stages"][0]["sweeps"][0]["file"]]


CHANGES: dict[str, tuple[Any, str]] = {
    "no index": (lambda index, members: members.pop(INDEX), "no tiled export"),
    "a schema of the future": (lambda index, members: index.update(schema=2), "schema"),
    "a missing graph": (lambda index, members: members.pop(index["head"]["file"]), "missing"),
    "a further member": (lambda index, members: members.update({"z.onnx": b""}), "z.onnx"),
    "a path outside": (lambda index, members: members.update({"../z": b""}), "of the name"),
    "other units": (lambda index, members: index["stages"][0].update(units=5), "do not fit|dimensions"),
    "other features": (lambda index, members: index["stages"][0].update(features=5), "other faces"),
    "another window": (lambda index, members: index["stages"][0].update(window=[1, 2]), "other faces"),
    "no number": (lambda index, members: index["stages"][0].update(units="x"), "integer"),
    "no stage": (lambda index, members: index.update(stages=[]), "list"),
    "no field": (lambda index, members: index["stages"][0].pop("sum"), "no 'sum'"),
    "a direction of zero": (
        lambda index, members: index["stages"][0]["sweeps"][0].update(direction=[0, 1]),
        "direction",
    ),
    "a sweep as head": (swap_heads, "head"),
    "another upsampling": (lambda index, members: index.update(upsample=[1, 1]), "contradicts"),
}


@pytest.mark.parametrize("name", CHANGES)
def test_archives_that_contradict_themselves_are_refused(name: str) -> None:
    change, words = CHANGES[name]
    data = changed(segmenter().path.read_bytes(), change)
    with pytest.raises(MDLSTMError, match=words) as error:
        TiledSession(data, "cpu")(np.zeros((8, 8, 3)), tile=4)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("cut", [0, 10, 5000, -30])
def test_damaged_archives_are_refused(cut: int) -> None:
    with pytest.raises(InputError, match=r"no tiled export|damaged"):
        TiledSession(segmenter().path.read_bytes()[:cut], "cpu")


@pytest.mark.parametrize("cell", ["slstm", "fast-and-slow", "gru"])
def test_cells_with_any_states_run_in_tiles(cell: str, own_cells: None) -> None:
    model = downward(cell)
    x = RNG.random((14, 11), dtype=np.float32)
    session = TiledSession(model.path, "cpu")
    assert {stage.states for stage in session.archive.stages} == {("h", *get_cell(cell).states)}
    assert_equal(session(x, tile=4), model.whole(x[..., None]))


@pytest.mark.parametrize("piece", [None, 7])
@pytest.mark.parametrize("cell", ["graves", "slstm", "fast-and-slow", "gru"])
def test_rows_stream_through_directions_that_go_downwards(
    cell: str, piece: int | None, own_cells: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    if piece:  # rows are cut across
        monkeypatch.setattr(stream_module, "PIECE_POSITIONS", piece)
    model = downward(cell)
    x = RNG.random((29, 17), dtype=np.float32)
    expected = model.whole(x[..., None])
    session = TiledSession(model.path, "cpu")
    stream = session.stream(width=17)
    results, start = [], 0
    for height in (1, 0, 3, 12, 1, 12):
        results.append(stream.feed(x[start : start + height]))
        start += height
        assert sum(map(len, results)) == start // 2  # each row of y as soon as its window is complete
    results.append(stream.close())
    np.testing.assert_allclose(np.concatenate(results), expected, rtol=0, atol=1e-6, strict=True)
    with pytest.raises(MDLSTMError, match="closed"):
        stream.feed(x)


@pytest.mark.parametrize("endless", [False, True])
def test_streams_of_bytes(endless: bool) -> None:
    """With a first extent of 0, there are rows until the end."""
    model = downward()
    x = RNG.random((11, 5)).astype(">f8")
    source, target = io.BytesIO(), io.BytesIO()
    np.save(source, x)
    data = source.getvalue()
    if endless:
        head = io.BytesIO()
        np.lib.format.write_array_header_1_0(
            head, {"descr": ">f8", "fortran_order": False, "shape": (0, 5)}
        )
        data = head.getvalue() + x.tobytes()
    session = TiledSession(model.path, "cpu")
    assert stream_rows(session, io.BytesIO(data), target) == (11, 6)
    target.seek(0)
    expected = model.whole(x.astype(np.float32)[..., None])
    if endless:
        y = np.frombuffer(target.getvalue()[-expected.nbytes :], np.float32).reshape(expected.shape)
    else:
        y = np.load(target)
    np.testing.assert_allclose(y, expected, rtol=0, atol=1e-6)
    with pytest.raises(InputError, match="middle of a row"):
        stream_rows(session, io.BytesIO(data[:-3]), io.BytesIO())


def test_networks_that_cannot_stream_say_why() -> None:
    with pytest.raises(InputError, match="goes upwards"):
        TiledSession(segmenter().path, "cpu").stream(width=4)
    with pytest.raises(InputError, match="width must hold 1"):
        TiledSession(downward().path, "cpu").stream(width=(4, 4))
    with pytest.raises(InputError, match=r"expected \(r, 4, 1\)"):
        TiledSession(downward().path, "cpu").stream(width=4).feed(np.zeros((2, 5)))
