"""Tiled exports under ONNX Runtime give what the network gives on the whole grid."""

from __future__ import annotations

import gc
import pickle
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnxruntime
import pytest
from helpers.processes import descendants
from helpers.tiled_models import segmenter

from mdlstm_tk.errors import InputError, MDLSTMError
from mdlstm_tk.runtime import TiledSession
from mdlstm_tk.runtime.tiles.local import on_threads

RNG = np.random.default_rng(0)


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
        np.testing.assert_array_equal(TiledSession(model.path, "cpu")(x, tile=8), first)  # on one thread
        assert_equal(session(np.stack([x, x]), tile=(15, 400)), np.stack([expected, expected]))
        other = pickle.loads(pickle.dumps(session))
    with other:
        np.testing.assert_array_equal(other(x, tile=8), first)
        assert (other.threads, other.isolated) == (3, isolated)
    with pytest.raises(MDLSTMError, match="closed"):
        session(x)


def loaded_graphs() -> int:
    gc.collect()
    return sum(type(thing) is onnxruntime.InferenceSession for thing in gc.get_objects())


def test_close_releases_all_graphs() -> None:
    before = loaded_graphs()
    session = TiledSession(segmenter().path, "cpu")
    assert loaded_graphs() == before + len(session.archive.graphs)
    session.close()
    assert loaded_graphs() == before


@pytest.mark.skipif(sys.platform != "linux", reason="looks for processes in /proc")
def test_an_isolated_session_is_one_process() -> None:
    before = descendants()
    with TiledSession(segmenter().path, "cpu", isolated=True) as session:
        assert len(session.archive.graphs) == 3
        assert len(set(descendants()) - set(before)) == 1
    assert set(descendants()) <= set(before)


def test_memory_is_bounded_by_smaller_batches() -> None:
    path = segmenter().path
    grid = (4096, 4096)
    assert TiledSession(path, "cpu").plan(grid).batch_size == 4
    small = TiledSession(path, "cpu", max_bytes=2**27 + 2**25)
    assert 1 <= small.plan(grid, 256).batch_size <= 4
    with pytest.raises(InputError, match=r"smaller tile=\.\.\., or allow more with max_bytes"):
        small.plan(grid, 4096)


@pytest.mark.parametrize(
    ("x", "options", "words"),
    [
        (np.zeros(3), {}, r"expected \(H, W\), \(H, W, C\) or \(N, H, W, C\)"),
        (np.zeros((4, 4, 2)), {}, "2 channels at each position, expected 3"),
        (np.zeros((0, 4, 3)), {}, "is empty"),
        (np.zeros((0, 4, 4, 3)), {}, "is empty"),
        (np.full((4, 4, 3), np.nan), {}, "NaN"),
        (np.ma.masked_equal(np.zeros((4, 4, 3)), 0), {}, "x has masked values"),
        (np.zeros((4, 4, 3)), {"batch_size": 0}, "batch_size must be"),
    ],
)
def test_wrong_arguments_are_refused(x: Any, options: dict[str, Any], words: str) -> None:
    with pytest.raises(InputError, match=words):
        TiledSession(segmenter().path, "cpu")(x, **options)


@pytest.mark.parametrize(("failure", "count"), [(InputError("x holds NaN"), 0), (KeyboardInterrupt(), 1)])
def test_only_an_interrupt_stops_the_runs_of_other_calls(failure: BaseException, count: int) -> None:
    stopped: list[None] = []
    work: Any = SimpleNamespace(graphs=SimpleNamespace(interrupt=lambda: stopped.append(None)))
    with pytest.raises(type(failure)), on_threads(work, 2):
        raise failure
    assert len(stopped) == count
