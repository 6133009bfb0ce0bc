"""Tiles as Ray tasks: the bytes of the local engine, also if a worker is killed on the way."""

from __future__ import annotations

import importlib.util
import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from helpers.tiled_models import classifier, segmenter

from mdlstm_tk.runtime import infer_paths, ray_engine

zarr: Any = pytest.importorskip("zarr")
RNG = np.random.default_rng(0)


def descendants(pid: int) -> list[int]:
    """The processes that a process has started, and those that these have."""
    found = []
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            parent = int(path.read_text().rpartition(")")[2].split()[1])
        except OSError:
            continue
        if parent == pid:
            child = int(path.parent.name)
            found += [child, *descendants(child)]
    return found


def workers() -> list[int]:
    """The processes of Ray that run a group now."""
    found = []
    for pid in descendants(os.getpid()):
        try:
            title = Path(f"/proc/{pid}/cmdline").read_bytes()
        except OSError:
            continue
        if title.startswith(b"ray::_run_group"):
            found.append(pid)
    return found


@pytest.mark.skipif(importlib.util.find_spec("ray") is None, reason="Ray is not installed")
def test_ray_gives_the_bytes_of_the_local_engine(tmp_path: Path) -> None:
    """Two files in one cluster of two workers, one of which is killed while it works on the first."""
    for name in ("a", "b"):
        np.save(tmp_path / f"{name}.npy", RNG.random((90, 80, 3), dtype=np.float32))
    sources = [tmp_path / "a.npy", tmp_path / "b.npy"]
    killed: list[int] = []

    def report(done: int, total: int) -> None:
        if not killed and done > total // 4:
            killed.extend(workers()[:1])
            for pid in killed:
                os.kill(pid, signal.SIGKILL)

    for engine in ("local", "ray"):
        run = infer_paths(
            sources,
            segmenter().path,
            tmp_path / engine,
            device="cpu",
            output_format="zarr",
            tile=16,
            engine=engine,  # type: ignore[arg-type]
            workers=2 if engine == "ray" else None,
            report=report if engine == "ray" else None,
        )
        assert [outcome.error for outcome in run.outcomes] == [None, None]
    assert killed
    for name in ("a", "b"):
        local, ray = (
            zarr.open_array(tmp_path / engine / f"{name}.out.zarr", mode="r")[:]
            for engine in ("local", "ray")
        )
        np.testing.assert_array_equal(local, ray, strict=True)
    assert not list(tmp_path.rglob("*scratch*"))


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

    monkeypatch.setattr(ray_engine, "ray_cluster", fake_cluster)
    channels = 3 if model is segmenter else 1
    np.save(tmp_path / "a.npy", RNG.random((30, 41, channels), dtype=np.float32))
    np.save(tmp_path / "b.npy", np.full((30, 41, channels), np.nan))
    answers = []
    for options in ({}, {"engine": "ray", "workers": 2}):
        target = None if model is classifier else tmp_path / options.get("engine", "local")
        sources = [tmp_path / "a.npy", tmp_path / "b.npy"]
        run = infer_paths(sources, model().path, target, device="cpu", tile=8, **options)  # type: ignore[arg-type]
        first, second = run.outcomes
        assert first.error is None and "NaN" in str(second.error)
        answers.append(first.answers)
    assert answers[0] == answers[1]
    if model is segmenter:
        local, ray = (tmp_path / name / "a.out.tif" for name in ("local", "ray"))
        assert local.read_bytes() == ray.read_bytes()
