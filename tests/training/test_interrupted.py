"""A run that is stopped in any way and goes on ends as one that is not: with equal weights, averages,
moments, metrics and best weights."""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors
import torch
from helpers.layouts import samples, write
from helpers.processes import fork_server

from mdlstm_tk._util.folders import locked
from mdlstm_tk.data import Dataset, TaskSpec
from mdlstm_tk.errors import InputError, MDLSTMError
from mdlstm_tk.kinds import kind_named
from mdlstm_tk.training import Run, TrainConfig, configure, load_checkpoint, loop, resume, train

ALL = {  # every kind of state: dropout, schedule, averages, distortion, patience
    "hidden": 4,
    "steps": 15,
    "batch_size": 6,
    "layers": 2,
    "dropout": 0.2,
    "schedule": "cosine",
    "warmup": 3,
    "clip": 1.0,
    "average": 0.9,
    "evaluate_every": 3,
    "patience": 50,
}


def content_of(run: Run) -> dict[str, Any]:
    """All that two runs should have in common: not the seconds that they took, and not paths."""
    found: dict[str, Any] = {"metrics": run.read_metrics()}
    for path in (run.best, run.last):
        with safetensors.safe_open(path, "pt") as file:
            values = json.loads(file.metadata()["mdlstm"])
            del values["state"]["seconds"], values["config"]["data"]
            found[path.name] = values, {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    return found


def assert_equal(run: Run, whole: Run) -> None:
    one, other = content_of(run), content_of(whole)
    assert one["metrics"] == other["metrics"]
    for name in ("best.safetensors", "last.safetensors"):
        (values, tensors), (expected, wanted) = one[name], other[name]
        assert values == expected
        assert tensors.keys() == wanted.keys()
        for key, tensor in tensors.items():
            assert torch.equal(tensor, wanted[key]), key


TASKS: dict[str, dict[str, Any]] = {
    "digits": {"task": "digits", "augment": 1.0, "validation": 0.2, **ALL},
    "diagonal": {"size": "5x6", **ALL, "average": 0.0, "dropout": 0.0},
    "own images": {"task": "segment", "augment": 1.0, "workers": 2, **ALL},
}


def settings_of(name: str, folder: Path) -> TrainConfig:
    data = {}
    if name == "own images":
        data = {"data": str(write(folder / "data", "segment", "folder"))}
    return configure(**TASKS[name], **data)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Run]:
    """A function that returns the uninterrupted run of a task."""
    made: dict[str, Run] = {}

    def run(name: str) -> Run:
        if name not in made:
            folder = tmp_path_factory.mktemp("whole")
            made[name] = Run(folder / "run")
            train(settings_of(name, folder), made[name].folder)
        return made[name]

    return run


def _go_on(config: TrainConfig | None, folder: Path, on_step: Any = None) -> None:
    if config is None:
        resume(folder, on_step=on_step)
    else:
        train(config, folder, on_step=on_step, force=True)


def fail_after(steps: int, how: int = 0) -> Callable[..., None]:
    """A function that raises an error, or sends a signal, when it is called for the last of some steps."""
    left = [steps]

    def fail(*_: Any) -> None:
        left[0] -= 1
        if left[0] == 0 and how:
            os.kill(os.getpid(), how)
        elif left[0] == 0:
            raise OSError("as of a full disk")

    return fail


def _be_killed(steps: int, config: TrainConfig | None, folder: Path) -> None:
    multiprocessing.set_start_method("fork", force=True)  # the workers of a fork server would start anew
    _go_on(config, folder, fail_after(steps, signal.SIGKILL))


def rename(data: Path, seed: int) -> None:
    """Give all samples other names, in another order."""
    for folder in (data / "images", data / "masks"):
        files = sorted(folder.iterdir())
        names = [f"{seed}-{k}.png" for k in np.random.default_rng(seed).permutation(len(files))]
        for file, name in zip(files, names, strict=True):
            file.rename(folder / name)


STOPS = [("interrupt", "digits"), ("interrupt", "own images"), ("kill", "own images")]
STOPS += [("error", "diagonal"), ("terminate", "digits")]


@pytest.mark.skipif(sys.platform == "win32", reason="needs SIGKILL and a fork server")
@pytest.mark.parametrize(("how", "name"), STOPS)
def test_a_run_that_is_stopped_again_and_again_equals_a_whole_one(
    how: str, name: str, whole: Callable[[str], Run], tmp_path: Path
) -> None:
    """At random steps; the user's files are renamed and reordered meanwhile, workers prepare batches."""
    config, run = settings_of(name, tmp_path), Run(tmp_path / "run")
    rng, stops = np.random.default_rng(sum(map(ord, how + name))), 0
    data = Path(config.data) if config.data else None
    while not run.result.exists():
        start = None if run.last.exists() else config
        steps = int(rng.integers(4, 9))
        if how == "error":
            with suppress(OSError):
                _go_on(start, run.folder, fail_after(steps))
        elif how == "kill" and not stops:  # a process takes seconds to load its kernels
            process = fork_server().Process(target=_be_killed, args=(steps, start, run.folder))
            process.start()
            process.join()
            assert process.exitcode == -signal.SIGKILL
        else:
            number = signal.SIGTERM if how == "terminate" else signal.SIGINT
            try:
                _go_on(start, run.folder, fail_after(steps, number))
            except KeyboardInterrupt:
                done, recorded = load_checkpoint(run.last).state.step, run.read_metrics()
                assert [record["step"] for record in recorded] == [*range(1, done + 1)]
        stops += 1
        if data is not None:
            rename(data, stops)
    assert stops > 1
    assert_equal(run, whole(name))


LOCKED = """import os, sys, time
from pathlib import Path
from mdlstm_tk._util.folders import locked
with locked(Path(sys.argv[1]), ""):
    if os.fork() == 0:  # the worker, which has left the lock when it says so
        print(os.getpid(), flush=True)
    time.sleep(600)
"""


@pytest.mark.skipif(sys.platform == "win32", reason="needs fork")
def test_a_folder_is_free_once_its_process_is_killed_though_a_worker_lives_on(tmp_path: Path) -> None:
    with subprocess.Popen([sys.executable, "-c", LOCKED, tmp_path], stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        worker = int(process.stdout.readline())
        try:
            with pytest.raises(MDLSTMError), locked(tmp_path, ""):
                pass
            process.kill()
            process.wait()
            with locked(tmp_path, ""), pytest.raises(MDLSTMError), locked(tmp_path, ""):
                pass
        finally:
            process.kill()
            os.kill(worker, signal.SIGKILL)


def test_a_longer_run_equals_one_that_was_begun_so(tmp_path: Path, whole: Callable[[str], Run]) -> None:
    config = settings_of("diagonal", tmp_path)
    short = configure(**{**TASKS["diagonal"], "schedule": "constant", "warmup": 0, "steps": 9})
    long = configure(**{**TASKS["diagonal"], "schedule": "constant", "warmup": 0})
    one, other = Run(tmp_path / "one"), Run(tmp_path / "other")
    train(short, one.folder)
    resume(one.folder, steps=config.steps)
    train(long, other.folder)
    assert_equal(one, other)


def test_a_run_whose_result_is_missing_is_only_concluded(
    tmp_path: Path, whole: Callable[[str], Run]
) -> None:
    """As a kill after the last step leaves it."""
    config, run = settings_of("diagonal", tmp_path), Run(tmp_path / "run")
    result = train(config, run.folder)
    run.result.unlink()
    steps: list[int] = []
    again = resume(run.folder, on_step=lambda state, *_: steps.append(state.step))
    assert not steps and again["errors"] == result["errors"] and run.result.exists()
    with pytest.raises(InputError):  # nothing is left to train
        resume(run.folder)
    assert_equal(run, whole("diagonal"))


def test_a_run_that_was_stopped_before_its_first_validation_is_a_run(tmp_path: Path) -> None:
    """It can be concluded, started from, and its last record may be torn anywhere."""
    data = str(write(tmp_path / "data", "tag", "folder"))
    config = configure(task="tag", data=data, hidden=2, steps=9, evaluate_every=9, batch_size=4)
    run = Run(tmp_path / "run")
    with pytest.raises(KeyboardInterrupt):
        _go_on(config, run.folder, fail_after(3, signal.SIGINT))
    train(replace(config, init=str(run.folder), steps=1), tmp_path / "other")
    records = run.read_metrics()
    for torn in (b'{"step": 4, "validation": {"f1": 0.5}', b'{"step": 4, "l', '{"ä'.encode()[:-1]):
        with run.metrics.open("ab") as file:
            file.write(torn)
        assert run.read_metrics() == records
        run.metrics.write_bytes(run.metrics.read_bytes().removesuffix(torn))
    done = load_checkpoint(run.last).state.step
    assert resume(run.folder, steps=3)["step"] == done and run.best.exists()


def test_one_training_at_a_time_works_in_a_folder(tmp_path: Path) -> None:
    config, run = settings_of("diagonal", tmp_path), Run(tmp_path / "run")

    def start_other(state: loop.State, *_: Any) -> None:
        if state.step not in (1, 9):
            return
        before = {path.name: path.read_bytes() for path in run.folder.iterdir()}
        with pytest.raises(MDLSTMError):
            train(config, run.folder, force=True)
        assert before == {path.name: path.read_bytes() for path in run.folder.iterdir()}

    train(config, run.folder, on_step=start_other)


@pytest.mark.parametrize("of", ["loss", "weights"])
def test_a_diverged_run_keeps_its_last_finite_checkpoint(
    of: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Weights may diverge in the step in which a signal arrives."""
    run, rng = Run(tmp_path / "run"), np.random.default_rng(0)
    samples = [(x, x.copy()) for x in rng.random((40, 4, 4, 1), dtype=np.float32)]
    steps = []

    def diverge(parameters: list[torch.nn.Parameter], _: float) -> None:
        steps.append(len(steps))
        if len(steps) == 7:
            parameters[0].grad = torch.full_like(parameters[0], torch.nan)
            os.kill(os.getpid(), signal.SIGINT)

    if of == "loss":
        samples[17][1][2, 2] = np.inf
    else:
        monkeypatch.setattr(loop, "clip_grad_norm_", diverge)
    every = 1 if of == "loss" else 5
    spec = TaskSpec("t", "grid", 1, 1, (4, 4), target_mean=(0.5,), target_std=(0.3,))
    task = Dataset(spec, {"train": samples}, kind_named("grid"))
    with pytest.raises(MDLSTMError) as raised:
        train(TrainConfig(steps=40, batch_size=4, evaluate_every=every, clip=1), run.folder, task=task)
    assert "\n" not in str(raised.value)
    assert all(t.isfinite().all() for t in load_checkpoint(run.last).tensors.values())


def test_state_says_when_a_run_ends() -> None:
    config = TrainConfig(steps=10, patience=2)
    state = loop.State(step=4)
    cases = (0.5, False, 4), (0.4, False, 5), (0.4, False, 6), (float("nan"), True, 6)
    for measure, is_done, best in cases:
        state = state.after({"error": measure}, config, frozenset())
        assert (state.is_done(config), state.best_step) == (is_done, best)
        state = loop.replace(state, step=state.step + 1)
    by_f1 = TrainConfig(best_by="f1")
    state = loop.State(step=1).after({"error": 0, "f1": 0.5}, by_f1, frozenset({"f1"}))
    state = loop.replace(state, step=2).after({"error": 1, "f1": 0.6}, by_f1, frozenset({"f1"}))
    assert state.best_step == 2
    with pytest.raises(InputError):
        state.after({"error": 1}, by_f1, frozenset())


@pytest.mark.parametrize("schedule", ["constant", "cosine"])
@pytest.mark.parametrize("minutes", [0.0, 2.0])
def test_the_rate_rises_stays_and_falls(schedule: str, minutes: float) -> None:
    config = TrainConfig(steps=100, warmup=10, lr=0.5, schedule=schedule, minutes=minutes)
    states = [loop.State(step=k, seconds=1.2 * k) for k in range(100)]
    rates = [loop.learning_rate(config, state) for state in states]
    assert rates[0] == pytest.approx(0.05, rel=0.01) and max(rates) <= 0.5
    if schedule == "constant":
        assert rates[9:] == [0.5] * 91
    else:
        assert rates[9:] == sorted(rates[9:], reverse=True) and rates[-1] < 0.001


def test_images_with_another_content_are_not_the_data_of_a_run(tmp_path: Path) -> None:
    """A changed pixel, a changed label, a sample more or less: refused; renamed: not."""
    content = samples("classify")
    run = Run(tmp_path / "run")
    data = write(tmp_path / "data", "classify", "folder", content)
    train(configure(task="classify", data=str(data), hidden=2, steps=2, batch_size=4), run.folder)
    other = content[3][0].copy()
    other[2, 3] ^= 1
    changed = {
        "pixel": [*content[:3], (other, content[3][1]), *content[4:]],
        "label": [(x, "class 0" if k == 4 else y) for k, (x, y) in enumerate(content)],
        "less": content[:-1],
        "more": [*content, (content[0][0] // 2, content[0][1])],
    }
    for name, other in changed.items():
        with pytest.raises(InputError):
            resume(run.folder, steps=3, data=str(write(tmp_path / name, "classify", "folder", other)))
    moved = write(tmp_path / "moved", "classify", "folder", content[::-1])
    assert resume(run.folder, steps=3, data=str(moved))["ending"] == "done 3 steps"


@pytest.mark.parametrize("kind", ["regress", "tag"])
def test_columns_in_another_order_are_those_of_the_run(kind: str, tmp_path: Path) -> None:
    data = write(tmp_path / "data", kind, "arrays")
    small: dict[str, Any] = {"task": kind, "data": str(data), "hidden": 4, "batch_size": 8, "augment": 0.0}
    for name, steps in (("whole", 6), ("run", 3)):
        train(configure(steps=steps, schedule="constant", **small), tmp_path / name)
    arrays = dict(np.load(data))
    np.savez(data, **{**arrays, "y": arrays["y"][:, ::-1], "names": arrays["names"][::-1]})
    resume(tmp_path / "run", steps=6)
    one, other = (load_checkpoint(Run(tmp_path / name).last).tensors for name in ("whole", "run"))
    assert all(torch.equal(one[name], other[name]) for name in one)
