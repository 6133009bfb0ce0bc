"""Interrupted, killed and resumed runs end with the same bytes as uninterrupted ones."""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from dataclasses import replace
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers.command import mdlstm, succeed
from helpers.forks import kill_at, processes
from helpers.refusal import refused
from helpers.training import DIGITS, SMALL, fail_at, last_tensors, quick, resume, run_in
from helpers.user_data import write_classes, write_image
from torch.optim.swa_utils import AveragedModel

from mdlstm_tk.cli import main
from mdlstm_tk.errors import InputError, MDLSTMError
from mdlstm_tk.training import (
    Progress,
    Run,
    TrainConfig,
    describe_run,
    evaluate,
    load_checkpoint,
    new_job,
    resume_job,
    train,
)
from mdlstm_tk.training.trainer import Trainer

needs_kill = pytest.mark.skipif(sys.platform == "win32", reason="needs SIGKILL and a fork server")


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """An uninterrupted run of SMALL."""
    return run_in(tmp_path_factory.mktemp("whole") / "run", SMALL)


@pytest.fixture(scope="module")
def whole_digits(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """An uninterrupted run with every kind of state: dropout, schedule, averages, augmented data."""
    return run_in(tmp_path_factory.mktemp("digits") / "run", DIGITS)


@pytest.mark.parametrize("stop", [1, 7, 11])
def test_a_run_that_goes_on_equals_an_uninterrupted_one(tmp_path: Path, whole: Run, stop: int) -> None:
    run = resume(run_in(tmp_path / "parts", replace(SMALL, steps=stop)), steps=12)
    records, expected_records = (
        [{**record, "validation": None} for record in each.read_metrics()] for each in (run, whole)
    )
    assert records == expected_records  # the first part was also validated at its end
    expected = last_tensors(whole)
    for name, tensor in last_tensors(run).items():
        assert torch.equal(tensor, expected[name]), name


def test_one_training_at_a_time_works_in_a_folder(tmp_path: Path) -> None:
    """One that was prepared before another one ended does not undo it."""
    run = run_in(tmp_path / "run", replace(SMALL, steps=3))
    first, second = (resume_job(run.folder, {"steps": 6}) for _ in range(2))

    def start_others(progress: Progress) -> None:
        before = {path.name: path.read_bytes() for path in run.folder.iterdir()}
        for job in (second, new_job(SMALL, run.folder, force=True)):
            message = r"another process works in .*; wait for it, or give another"
            with pytest.raises(MDLSTMError, match=message):
                train(job)
        assert before == {path.name: path.read_bytes() for path in run.folder.iterdir()}

    train(first, start_others)
    with pytest.raises(InputError, match="has gone on since it was opened"):
        train(second)
    assert len(run.read_metrics()) == 6


@pytest.mark.parametrize("stop", [2, 6, 13])
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupt_takes_effect_after_the_step_and_the_run_resumes_exactly(
    tmp_path: Path, whole_digits: Run, stop: int, number: int
) -> None:
    def interrupt(progress: Progress) -> None:
        if progress.step == stop:
            os.kill(os.getpid(), number)

    run = Run(tmp_path / "parts")
    with pytest.raises(KeyboardInterrupt):
        run_in(run.folder, DIGITS, on_step=interrupt)
    assert load_checkpoint(run.last).step == stop
    assert [record["step"] for record in run.read_metrics()] == list(range(1, stop + 1))
    resume(run)
    for name in ("metrics.jsonl", "last.safetensors", "best.safetensors"):
        assert (run.folder / name).read_bytes() == (whole_digits.folder / name).read_bytes()


@pytest.mark.parametrize(
    ("owner", "name", "call"),
    [(Trainer, "validate", 2), (Trainer, "validate", 5), (AveragedModel, "update_parameters", 5)],
    ids=["validation", "last validation", "step"],
)
def test_an_interrupt_within_a_validation_or_a_step_changes_nothing(
    owner: type, name: str, call: int, tmp_path: Path, whole_digits: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As a second Ctrl-C does. A step that was torn apart is done again from the checkpoint before."""
    calls, whole = count(1), getattr(owner, name)

    def interrupted(*arguments: Any) -> Any:
        if next(calls) == call:
            raise KeyboardInterrupt
        return whole(*arguments)

    monkeypatch.setattr(owner, name, interrupted)
    run = Run(tmp_path / "parts")
    with pytest.raises(KeyboardInterrupt):
        run_in(run.folder, DIGITS)
    monkeypatch.undo()
    resume(run)
    for name in ("metrics.jsonl", "last.safetensors", "best.safetensors"):
        assert (run.folder / name).read_bytes() == (whole_digits.folder / name).read_bytes()


@needs_kill
def test_a_run_that_is_killed_repeatedly_equals_an_uninterrupted_one(tmp_path: Path) -> None:
    """SIGKILL arrives between steps, within one, or while a checkpoint is written."""
    config = replace(DIGITS, steps=24, evaluate_every=2)
    whole, run = run_in(tmp_path / "whole", config), Run(tmp_path / "killed")
    rng, kills, done = np.random.default_rng(0), 0, False
    while (
        not done
    ):  # a run whose process was killed after its last step is resumed, too: `best` may be missing
        arguments = (run.folder, config if not run.last.exists() else None)
        process = processes().Process(target=start_or_resume, args=arguments)
        process.start()
        before, is_recorded = size_of(run.metrics), size_of(run.metrics) == size_of(whole.metrics)
        while process.is_alive() and size_of(run.metrics) == before and not is_recorded:
            time.sleep(0.002)
        process.join(None if is_recorded else rng.exponential(0.05))
        kills += process.is_alive()
        process.kill()
        process.join()
        done = process.exitcode == 0
    assert kills
    for name in ("metrics.jsonl", "last.safetensors", "best.safetensors"):
        assert (run.folder / name).read_bytes() == (whole.folder / name).read_bytes()


def start_or_resume(folder: Path, config: TrainConfig | None) -> None:
    resume(Run(folder)) if config is None else run_in(folder, config)


def size_of(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0


def test_resuming_removes_records_after_the_checkpoint(tmp_path: Path) -> None:
    """Also half written ones, and where earlier ones were deleted."""
    run = run_in(tmp_path, replace(SMALL, steps=4))
    run.metrics.unlink()
    resume(run, steps=6)
    with run.metrics.open("a") as file:
        file.write('{"step": 7}\n{"step": 8, "lo')  # killed before its next checkpoint
    resume(run, steps=12)
    assert [record["step"] for record in run.read_metrics()] == list(range(5, 13))


TRAIN = ("train", "--size", "5x6", "--batch-size", "4", "--hidden", "4")


@needs_kill
@pytest.mark.parametrize("name", ["result.json", "curves.png", "prediction.png"])
def test_a_run_that_is_killed_after_its_last_step_is_concluded(name: str, tmp_path: Path) -> None:
    run = Run(tmp_path / "run")
    kill_at(name, main, [*TRAIN, "--steps", "4", "-o", str(run.folder)], cwd=tmp_path)
    assert load_checkpoint(run.last).step == 4
    assert not run.is_evaluated
    last, metrics, times = run.last.read_bytes(), run.metrics.read_bytes(), run.read_times()
    done = succeed("train", "--resume", run.folder, "--json")
    assert run.is_evaluated
    assert (run.last.read_bytes(), run.metrics.read_bytes(), run.read_times()) == (last, metrics, times)
    result = json.loads(done.out)
    assert (result["step"], result["errors"]) == (4, run.read_result()["errors"])
    refused = mdlstm("train", "--resume", run.folder)  # now it is complete
    assert refused.code == 2
    assert "4 steps already" in refused.err


@needs_kill
def test_an_old_result_does_not_make_a_killed_run_count_as_complete(tmp_path: Path) -> None:
    run = Run(tmp_path / "run")
    succeed(*TRAIN, "--steps", "3", "-o", run.folder)
    run.report.touch()
    kill_at("result.json", main, ["train", "--resume", str(run.folder), "--steps", "5"], cwd=tmp_path)
    assert not any(path.exists() for path in (run.result, run.prediction, run.report))
    succeed("train", "--resume", run.folder)
    assert run.read_result()["step"] == load_checkpoint(run.best).step


def test_times_are_summed_over_interruptions(tmp_path: Path) -> None:
    run = run_in(tmp_path, replace(SMALL, steps=5))
    first = run.read_times()
    times = resume(run, steps=12).read_times()
    assert (first.steps, times.steps) == (5, 12)
    assert times.training > first.training > 0
    assert times.validation > first.validation > 0
    assert run.read_result()["seconds"] == round(times.training, 1)
    assert run.read_result()["steps_per_second"] == pytest.approx(12 / times.training, abs=1e-3)


def test_a_new_run_in_a_used_folder_keeps_nothing_of_the_old_one(tmp_path: Path) -> None:
    run = run_in(tmp_path, SMALL)
    run.report.touch()
    with pytest.raises(KeyboardInterrupt):
        run_in(tmp_path, replace(SMALL, hidden=3), on_step=fail_at(1))
    assert load_checkpoint(run.best).config.hidden == 3
    assert run.read_times().steps == 1
    assert not run.result.exists() and not run.report.exists()


def test_changed_data_keep_the_first_split_and_new_samples_are_trained_on(tmp_path: Path) -> None:
    data = write_classes(tmp_path / "signs", {"stop": 12, "yield": 12})
    run = run_in(tmp_path / "run", quick(data, "classify", steps=2))
    samples = run.read_samples() or {}
    before = {split: [each.name for each in ids] for split, ids in samples.items()}
    unchanged = resume_job(run.folder, {"steps": 3})
    assert before == {split: list(names) for split, names in unchanged.task.names.items()}
    assert not any("sample" in note for note in unchanged.notes)
    gone = [*before["train"][:2], before["validation"][0]]
    for name in gone:
        (data / name).unlink()
    added = ["stop/new.png", "yield/a new one.png"]
    for name in added:
        write_image(data / name, np.full((6, 9), 99))
    job = resume_job(run.folder, {"steps": 3})
    assert set(job.task.names["validation"]) == set(before["validation"]) - set(gone)
    assert set(job.task.names["train"]) == {*before["train"], *added} - set(gone)
    missing, new = job.notes[:2]
    assert missing.startswith("3 samples") and all(name in missing for name in gone)
    assert new.startswith("2 new samples") and all(name in new for name in added)
    train(job)
    new_names = {each.name for each in (run.read_samples() or {})["train"]} - set(before["train"])
    assert new_names == set(added)
    assert (run.read_samples() or {})["train"][:-2] == samples["train"]  # what is gone has been trained on


def test_the_best_weights_are_measured_on_the_validation_data_that_a_run_goes_on_with(
    tmp_path: Path,
) -> None:
    """Otherwise a score on easier data would keep later weights from being the best, and end the run."""
    data = write_classes(tmp_path / "data/train", {"stop": 8, "yield": 8}).parent
    write_classes(data / "val", {"stop": 3, "yield": 0})
    run = run_in(tmp_path / "run", quick(data, "classify", steps=2, evaluate_every=1, lr=1e-7, average=0.0))
    before = load_checkpoint(run.last).state
    (data / "val/stop").rename(data / "val/yield")  # all of them have the other class
    job = resume_job(run.folder, {"steps": 3})
    assert any("the best weights are measured again" in note for note in job.notes)
    train(job)
    state, best = load_checkpoint(run.last).state, load_checkpoint(run.best)
    error = evaluate(best.network(), job.task, "validation", job.config)["error"]
    assert state.score == pytest.approx(error) == 1 - before.score
    assert not any("measured again" in note for note in resume_job(run.folder, {"steps": 4}).notes)
    state_of_info = describe_run(run.folder)
    assert (state_of_info["best_step"], state_of_info["best_score"]) == (state.best_step, state.score)


@pytest.mark.parametrize("validation", [0.0, 0.25])
def test_a_run_that_ends_where_it_was_interrupted_is_validated_there(
    tmp_path: Path, validation: float
) -> None:
    """As one that had so many steps from the beginning, but for its schedule."""
    data = write_classes(tmp_path / "data", {"stop": 8, "yield": 8})
    config = quick(data, "classify", steps=9, evaluate_every=5, schedule="constant", validation=validation)
    with pytest.raises(KeyboardInterrupt):
        run_in(tmp_path / "run", config, on_step=fail_at(7))
    run = resume(Run(tmp_path / "run"), steps=7)
    whole = run_in(tmp_path / "whole", replace(config, steps=7))
    assert run.read_metrics() == whole.read_metrics()
    for name in ("step", "errors", "split"):
        assert run.read_result()[name] == whole.read_result()[name]
    tensors, expected = (load_checkpoint(each.best).tensors for each in (run, whole))
    assert all(torch.equal(tensor, expected[name]) for name, tensor in tensors.items())


def test_a_new_run_does_not_replace_one_that_was_trained_meanwhile(tmp_path: Path) -> None:
    first, second = new_job(SMALL, tmp_path), new_job(replace(SMALL, seed=1), tmp_path)
    train(first)
    before = last_tensors(first.run)
    for job in (second, first):  # the same one again, too
        refused("has been trained into since this run was prepared", lambda job=job: train(job))
    assert all(torch.equal(tensor, before[name]) for name, tensor in last_tensors(first.run).items())
    first.run.last.write_bytes(b"of another version")
    train(new_job(replace(SMALL, seed=1), tmp_path, force=True))


def test_an_edited_configuration_of_a_run_is_named(tmp_path: Path) -> None:
    run = run_in(tmp_path, replace(SMALL, steps=2))
    assert not any("differs" in note for note in resume_job(tmp_path, {"steps": 3}).notes)
    run.config.write_text(run.config.read_text().replace("hidden = 4", "hidden = 5"))
    notes = resume_job(tmp_path, {"steps": 3}).notes
    assert any(
        "config.toml differs from the settings of the last checkpoint, which count" in n for n in notes
    )
