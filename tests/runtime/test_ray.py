"""Ray gives the bytes of a run in this process, also if a worker is killed on the way."""

from __future__ import annotations

import os
import pickle
import re
import signal
import warnings
from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from helpers.crafted_models import node
from helpers.processes import descendants
from helpers.small_models import write_model
from helpers.tiled_models import classifier, segmenter, single

from mdlstm_tk import MDLSTM
from mdlstm_tk.errors import InputError, MDLSTMError
from mdlstm_tk.export import export_onnx
from mdlstm_tk.runtime import TiledSession, infer_paths
from mdlstm_tk.runtime import ray as ray_module
from mdlstm_tk.runtime.jobs import Content, Job
from mdlstm_tk.runtime.ray import FilesWorker, _pool, ray_cluster
from mdlstm_tk.runtime.tiles.files import infer_tiled
from mdlstm_tk.runtime.tiles.work import Work

zarr: Any = pytest.importorskip("zarr")
RNG = np.random.default_rng(0)
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def cluster() -> Iterator[Any]:
    """A cluster of two workers, which all calls share."""
    pytest.importorskip("ray")
    with ray_cluster(2) as ray, pytest.MonkeyPatch.context() as patch:
        patch.setattr(ray_module, "ray_cluster", lambda cpus: nullcontext(ray))
        yield ray


def killing_worker() -> tuple[Any, list[int]]:
    """A report that kills a worker of Ray after a quarter of the tiles, and whom it has killed."""
    killed: list[int] = []

    def report(done: int, total: int) -> None:
        if not killed and done > total // 4:
            titles = {pid: Path(f"/proc/{pid}/cmdline").read_bytes() for pid in descendants()}
            killed.extend(
                [pid for pid, title in titles.items() if title.startswith(b"ray::TilesWorker")][:1]
            )
            for pid in killed:
                os.kill(pid, signal.SIGKILL)

    return report, killed


@pytest.mark.parametrize(
    ("model", "suffix"),
    [
        (segmenter, "zarr"),
        pytest.param(segmenter, "tif", marks=pytest.mark.weekly),
        pytest.param(classifier, "txt", marks=pytest.mark.weekly),
    ],
)
def test_tiles_have_the_bytes_of_a_local_run(model: Any, suffix: Any, cluster: Any, tmp_path: Path) -> None:
    """A worker is killed on the way, and a file that cannot be read does not stop the next one."""
    channels = 3 if model is segmenter else 1
    np.save(tmp_path / "x.npy", RNG.random((90, 80, channels), dtype=np.float32))
    np.save(tmp_path / "nan.npy", np.full((30, 41, channels), np.nan))
    report, killed = killing_worker()
    answers = []
    how: dict[str, dict[str, Any]] = {"local": {}, "ray": {"report": report, "workers": 2}}
    contents: dict[str, Content] = {"zarr": "outputs", "tif": "answers", "txt": "lines"}
    for name, options in how.items():
        targets = [str(tmp_path / f"{k}-{name}.{suffix}") if suffix != "txt" else "-" for k in range(2)]
        sources = [str(tmp_path / f"{source}.npy") for source in ("nan", "x")]
        jobs = [Job(*pair, suffix, contents[suffix]) for pair in zip(sources, targets, strict=True)]
        with TiledSession(model().path, "cpu") as session:
            first, second = infer_tiled(session, jobs, tile=16, **options)
        assert "NaN" in str(first.error) and second.error is None
        answers.append(second.answers)
    assert killed and answers[0] == answers[1]
    local, ray = (tmp_path / f"1-{name}.{suffix}" for name in ("local", "ray"))
    if suffix == "tif":
        assert local.read_bytes() == ray.read_bytes()
    elif suffix == "zarr":
        expected, y = (zarr.open_array(path, mode="r")[:] for path in (local, ray))
        np.testing.assert_array_equal(y, expected, strict=True)
    assert not list(tmp_path.rglob("*scratch*"))


def test_files_have_the_bytes_of_a_local_run(
    cluster: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Chunks of files, one of which cannot be read, come back in their order."""
    monkeypatch.setattr(ray_module, "CHUNK", 2)
    export_onnx(MDLSTM(1, 2), tmp_path / "model.onnx", grid=(6, 7))
    names = [f"{k}" for k in range(5)]
    for name in names:
        np.save(tmp_path / f"{name}.npy", RNG.random((int(name) % 3 + 1, 6, 7, 1)))
    np.save(tmp_path / "3.npy", np.zeros((2, 2)))
    errors, sources = [], [f"{tmp_path / name}.npy" for name in names]
    for engine, options in (("local", {}), ("ray", {"engine": "ray", "workers": 2})):
        run = infer_paths(sources, tmp_path / "model.onnx", tmp_path / engine, device="cpu", **options)
        results = list(run.results)
        assert engine == "local" or [result.job.source for result in results] == sources
        errors.append(sorted(str(result.error) for result in results))
    assert errors[0] == errors[1] and errors[0].count("None") == 4
    for name in ("0", "1", "2", "4"):
        local, ray = ((tmp_path / engine / f"{name}.out.npy").read_bytes() for engine in ("local", "ray"))
        assert local == ray
    with pytest.raises(InputError, match='engine="ray" takes files'):
        infer_paths(["-"], tmp_path / "model.onnx", engine="ray")


def test_warnings_of_workers_are_given_here(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def pool(ray: Any, worker: type, arguments: tuple[Any, ...], *_: Any) -> Any:
        """A worker in this process, which passes on what can be pickled."""

        def remote(*run: Any) -> Any:
            with warnings.catch_warnings(record=True) as lost:
                outcome = pickle.dumps(actor.run(*run))
            assert not lost
            return pickle.loads(outcome)

        if worker is FilesWorker:  # in isolation, a child has the memory that it has without Ray
            assert arguments[3]["max_bytes"] is None
        actor, proxy = worker(*arguments), SimpleNamespace(run=SimpleNamespace(remote=remote))
        return SimpleNamespace(map=lambda call, values: [call(proxy, value) for value in values])

    model = single().path  # is verified with `Work._apply_head`
    monkeypatch.setattr(ray_module, "ray_cluster", lambda cpus: nullcontext(None))
    monkeypatch.setattr(ray_module, "_pool", pool)
    write_model(tmp_path / "m.onnx", [node("Mul", "x x", "y")])
    np.save(tmp_path / "x.npy", np.full((4, 4), 1e30, np.float32))
    monkeypatch.setattr(Work, "_apply_head", lambda _, h, extents: np.full((len(h), *extents, 1), np.nan))
    for path, name in ((tmp_path / "m.onnx", "of /"), (model, "of a tile of /")):
        run = infer_paths([tmp_path / "x.npy"], path, device="cpu", engine="ray", force=True)
        with pytest.warns(UserWarning, match=f"the result {name}.* NaN or infinite values"):
            assert [result.error for result in run.results] == [None]


def test_errors_of_the_caller_are_not_those_of_ray(monkeypatch: pytest.MonkeyPatch) -> None:
    exceptions = SimpleNamespace(RayError=LookupError)
    ray = SimpleNamespace(init=lambda **_: None, shutdown=lambda: None, exceptions=exceptions)
    monkeypatch.setattr(ray_module, "require", lambda *_: ray)
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    with pytest.raises(BrokenPipeError), ray_cluster(1):
        raise BrokenPipeError
    with pytest.raises(MDLSTMError, match="Ray failed: lost"), ray_cluster(1):
        raise LookupError("lost")


def test_no_worker_waits_for_a_gpu_that_does_not_exist(monkeypatch: pytest.MonkeyPatch) -> None:
    resources = {"CPU": 8.0, "GPU": 2.0}
    actor = SimpleNamespace(remote=lambda: "an actor")
    ray = SimpleNamespace(remote=lambda **_: lambda _: actor, cluster_resources=lambda: resources)
    monkeypatch.setattr(ray_module, "require", lambda *_: SimpleNamespace(ActorPool=list))
    assert len(_pool(ray, ray_module.FilesWorker, (), 8, "cuda")) == 2
    assert len(_pool(ray, ray_module.FilesWorker, (), 8, "cpu")) == 8
    del resources["GPU"]
    with pytest.raises(MDLSTMError, match="the Ray cluster has no GPU"):
        _pool(ray, ray_module.FilesWorker, (), 8, "cuda:0")


@pytest.mark.parametrize("address", ["127.0.0.1:1", "head..local:6379"])
def test_a_cluster_that_does_not_answer_is_one_line(address: str, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("ray")
    monkeypatch.setenv("RAY_ADDRESS", address)
    message = rf"no Ray cluster answers at \$RAY_ADDRESS {re.escape(address)}"
    with pytest.raises(MDLSTMError, match=message), ray_cluster(1):
        pass
