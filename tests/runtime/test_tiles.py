"""Tiled exports under ONNX Runtime give what the network gives on the whole grid."""

from __future__ import annotations

import gc
import os
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

from mdlstm_tk.errors import InputError, MDLSTMError, StoppedError
from mdlstm_tk.runtime import TiledSession, infer_paths
from mdlstm_tk.runtime.tiles.local import on_threads
from mdlstm_tk.runtime.tiles.work import Work

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


def test_a_file_for_which_the_model_is_stopped_leaves_the_others_to_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    reasons: dict[str, Exception] = {"b": MemoryError(), "c": StoppedError("too slow", "time")}
    for name in ("a", "b", "c", "d", "c2", "c3"):
        np.save(f"{name}.npy", np.zeros((8, 8, 3), np.float32))
    model = segmenter().path  # is verified with `Work.run`
    run_group = Work.run

    def stop(work: Any, group: Any) -> None:
        if reason := reasons.get(Path(work._source._label).name[0]):
            raise reason
        run_group(work, group)

    monkeypatch.setattr(Work, "run", stop)

    def infer(*names: str) -> list[Any]:
        paths = [f"{name}.npy" for name in names]
        return list(
            infer_paths(paths, model, "out/", output_format="npy", device="cpu", force=True).results
        )

    assert [result.error for result in infer("a", "b", "c", "d")] == [
        *(None, "b.npy needs more memory than is left; give a smaller tile=..."),
        *("c.npy: too slow", None),
    ]
    with pytest.raises(StoppedError, match="too slow") as error:
        infer("c")
    assert error.value.cause == "time"
    assert len(infer("c", "c2", "a", "c3")) == 4
    with pytest.raises(StoppedError):
        infer("c", "c2", "c3", "a")
    assert sorted(os.listdir("out")) == ["a.out.npy", "d.out.npy"]
