"""Ray gives the bytes of a run in this process, also if a worker is killed on the way."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from helpers.processes import descendants
from helpers.tiled_models import classifier, segmenter

from mdlstm_tk import MDLSTM
from mdlstm_tk.errors import MDLSTMError
from mdlstm_tk.export import export_onnx
from mdlstm_tk.runtime import Session, TiledSession
from mdlstm_tk.runtime import ray as ray_module
from mdlstm_tk.runtime.batching import infer_files
from mdlstm_tk.runtime.jobs import Job
from mdlstm_tk.runtime.ray import ray_cluster
from mdlstm_tk.runtime.tiles.files import TileOptions, infer_tiled

zarr: Any = pytest.importorskip("zarr")
RNG = np.random.default_rng(0)


@pytest.fixture(scope="module")
def cluster() -> Iterator[Any]:
    """A cluster of two workers, which all calls share."""
    pytest.importorskip("ray")
    with ray_cluster(2) as ray, pytest.MonkeyPatch.context() as patch:
        patch.setattr(ray_module, "ray_cluster", lambda cpus: nullcontext(ray))
        yield ray


def tiled(model: Any, jobs: list[Job], tile: int, workers: int | None, report: Any = None) -> list[Any]:
    with TiledSession(model.path, "cpu") as session:
        options = TileOptions(tile=tile, workers=workers, report=report)
        return list(infer_tiled(session, jobs, options))


def killing_worker() -> tuple[Any, list[int]]:
    """A report that kills a worker of Ray after a quarter of the tiles, and whom it has killed."""
    killed: list[int] = []

    def report(done: int, total: int) -> None:
        if not killed and done > total // 4:
            titles = {pid: Path(f"/proc/{pid}/cmdline").read_bytes() for pid in descendants()}
            killed.extend(
                [pid for pid, title in titles.items() if title.startswith(b"ray::_run_group")][:1]
            )
            for pid in killed:
                os.kill(pid, signal.SIGKILL)

    return report, killed


@pytest.mark.parametrize("suffix", ["zarr", "tif"])
def test_tiles_have_the_bytes_of_a_local_run(suffix: Any, cluster: Any, tmp_path: Path) -> None:
    """A worker is killed on the way."""
    np.save(tmp_path / "x.npy", RNG.random((90, 80, 3), dtype=np.float32))
    report, killed = killing_worker()
    targets = [tmp_path / f"{name}.{suffix}" for name in ("local", "ray")]
    for target, workers in zip(targets, (None, 2), strict=True):
        job = Job(str(tmp_path / "x.npy"), str(target), suffix)
        (outcome,) = tiled(segmenter(), [job], 16, workers, report if workers else None)
        assert outcome.error is None
    assert killed
    if suffix == "tif":
        assert targets[0].read_bytes() == targets[1].read_bytes()
    else:
        local, ray = (zarr.open_array(target, mode="r")[:] for target in targets)
        np.testing.assert_array_equal(local, ray, strict=True)
    assert not list(tmp_path.rglob("*scratch*"))


def test_files_have_the_bytes_of_a_local_run(
    cluster: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Windows of files, one of which cannot be read, come back in their order."""
    monkeypatch.setattr(ray_module, "WINDOW", 2)
    export_onnx(MDLSTM(1, 2), tmp_path / "model.onnx", grid=(6, 7))
    names = [f"{k}" for k in range(5)]
    for name in names:
        np.save(tmp_path / f"{name}.npy", RNG.random((int(name) % 3 + 1, 6, 7, 1)))
    np.save(tmp_path / "3.npy", np.zeros((2, 2)))
    errors = []
    for engine in ("local", "ray"):
        (tmp_path / engine).mkdir()
        jobs = [Job(f"{tmp_path / name}.npy", f"{tmp_path / engine / name}.npy", "npy") for name in names]
        if engine == "local":
            outcomes = list(infer_files(Session(tmp_path / "model.onnx", "cpu"), jobs))
        else:
            outcomes = list(ray_module.infer_with_ray(tmp_path / "model.onnx", jobs, workers=2))
            assert [outcome.job for outcome in outcomes] == jobs
        errors.append(sorted(str(outcome.error) for outcome in outcomes))
    assert errors[0] == errors[1] and errors[0].count("None") == 4
    for name in ("0", "1", "2", "4"):
        local, ray = ((tmp_path / engine / f"{name}.npy").read_bytes() for engine in ("local", "ray"))
        assert local == ray


def test_a_cluster_that_does_not_answer_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("ray")
    monkeypatch.setenv("RAY_ADDRESS", "127.0.0.1:1")
    with (
        pytest.raises(MDLSTMError, match=r"no Ray cluster answers at \$RAY_ADDRESS 127.0.0.1:1"),
        ray_cluster(1),
    ):
        pass


class FakeRay:
    """Runs tasks in this process, and finished ones again at random, as Ray does when a machine is lost."""

    def __init__(self) -> None:
        self.calls: list[tuple[Any, tuple[Any, ...]]] = []

    def remote(self, **_: Any) -> Any:
        """The decorator."""

        def decorated(function: Any) -> Any:
            def start(*arguments: Any) -> tuple[Ref, Ref]:
                self.calls.append((function, tuple(map(self.get, arguments))))
                for index in RNG.integers(len(self.calls), size=2):
                    again, values = self.calls[index]
                    again(*values)
                faces, error = function(*self.calls[-1][1])
                return Ref(faces), Ref(error)

            return SimpleNamespace(remote=start)

        return decorated

    def put(self, value: Any) -> Ref:
        """Store an object, the first that a file needs; tasks of the file before are over."""
        self.calls = []
        return Ref(value)

    def get(self, ref: Any) -> Any:
        """The object of a reference."""
        return ref.value if isinstance(ref, Ref) else ref

    def wait(self, refs: list[Any], num_returns: int) -> tuple[list[Any], list[Any]]:
        """All tasks have ended."""
        return refs[:num_returns], refs[num_returns:]


class Ref:
    """A reference to an object."""

    def __init__(self, value: Any) -> None:
        self.value = value


@pytest.mark.parametrize("model", [classifier, segmenter])
def test_tasks_may_run_again(model: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither that nor an error of one file changes what the others give."""

    @contextmanager
    def fake_cluster(_: int) -> Iterator[FakeRay]:
        yield FakeRay()

    monkeypatch.setattr(ray_module, "ray_cluster", fake_cluster)
    channels = 3 if model is segmenter else 1
    np.save(tmp_path / "a.npy", RNG.random((30, 41, channels), dtype=np.float32))
    np.save(tmp_path / "b.npy", np.full((30, 41, channels), np.nan))
    answers = []
    suffix: Any = "tif" if model is segmenter else "txt"
    for workers in (None, 2):
        target = str(tmp_path / f"{workers}.tif") if model is segmenter else "-"
        jobs = [Job(str(tmp_path / f"{name}.npy"), target, suffix) for name in ("a", "b")]
        first, second = tiled(model(), jobs, 8, workers)
        assert first.error is None and "NaN" in str(second.error)
        answers.append(first.answers)
    assert answers[0] == answers[1]
    if model is segmenter:
        assert (tmp_path / "None.tif").read_bytes() == (tmp_path / "2.tif").read_bytes()
