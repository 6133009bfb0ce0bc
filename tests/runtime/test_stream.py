"""Rows that stream through a network give what the whole image gives."""

from __future__ import annotations

import io
from typing import Any

import numpy as np
import pytest
from helpers.own_cells import register_own_cells
from helpers.tiled_models import downward, segmenter

from mdlstm_tk.errors import InputError, MDLSTMError, StoppedError
from mdlstm_tk.runtime import TiledSession
from mdlstm_tk.runtime.tiles import stream as stream_module
from mdlstm_tk.runtime.tiles.stream import stream_rows

RNG = np.random.default_rng(0)


@pytest.mark.parametrize("positions", [None, 70])
@pytest.mark.parametrize("cell", ["graves", "slstm", "fast-and-slow", "gru"])
def test_rows_stream_through_directions_that_go_downwards(
    cell: str, positions: int | None, fresh_registries: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    register_own_cells()
    if positions:  # several tiles across, in blocks of few rows
        monkeypatch.setattr(stream_module, "TILE_POSITIONS", positions)
        monkeypatch.setattr(stream_module, "BLOCK_ROWS", 3)
    model = downward(cell)
    x = RNG.random((29, 17), dtype=np.float32)
    expected = model.whole(x[..., None])
    stream = TiledSession(model.path, "cpu").stream(width=17)
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
    header = {"descr": ">f8", "fortran_order": False, "shape": (0 if endless else 11, 5)}
    np.lib.format.write_array_header_1_0(source, header)
    data = source.getvalue() + x.tobytes()
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


@pytest.mark.parametrize("shape", [(11,), (11, 5, 2), (0, 5, 0)], ids=str)
def test_streams_that_do_not_fit_are_refused_before_anything_is_written(shape: tuple[int, ...]) -> None:
    source, target = io.BytesIO(), io.BytesIO()
    header = {"descr": "<f4", "fortran_order": False, "shape": shape}
    np.lib.format.write_array_header_1_0(source, header)
    source.write(bytes(1000))
    source.seek(0)
    with pytest.raises(InputError, match=r"expected rows \(H, W, 1\) or \(H, W\) of real numbers"):
        stream_rows(TiledSession(downward().path, "cpu"), source, target)
    assert not target.getvalue()


def test_a_stream_ends_with_a_run_that_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    """Rows after it would get faces of other rows."""

    def fail(*_: object) -> None:
        raise StoppedError("too slow", "time")

    stream = TiledSession(downward().path, "cpu").stream(width=4)
    with monkeypatch.context() as patch:
        patch.setattr(stream_module.Work, "run", fail)
        with pytest.raises(StoppedError):
            stream.feed(np.zeros((3, 4)))
    with pytest.raises(MDLSTMError, match="closed"):
        stream.feed(np.zeros((3, 4)))
    assert len(stream.close()) == 0


@pytest.mark.parametrize(
    ("model", "width", "rows", "words"),
    [
        (segmenter, 4, None, "goes upwards"),
        (downward, (4, 4), None, "width must hold 1"),
        (downward, 0, None, "width must hold 1"),
        (downward, 4, np.zeros((2, 5)), r"expected \(r, 4, 1\)"),
        (downward, 4, np.full((2, 4), np.inf), "NaN or infinite"),
    ],
)
def test_what_cannot_stream_is_refused(model: Any, width: Any, rows: Any, words: str) -> None:
    with pytest.raises(InputError, match=words):
        TiledSession(model().path, "cpu").stream(width).feed(rows)
