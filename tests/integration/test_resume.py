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

import numpy as np
import pytest
import torch
from helpers.command import mdlstm
from helpers.forks import kill_at, processes
from helpers.training import DIGITS, SMALL, last_tensors, run_in

from mdlstm_tk.cli import main
from mdlstm_tk.errors import InputError
from mdlstm_tk.report import draw_run
from mdlstm_tk.training import (
    Progress,
    Run,
    evaluate_run,
    load_checkpoint,
    make_task,
    resume_job,
    run_job,
    train,
    trainer,
)
from mdlstm_tk.training.losses import adam

needs_kill = pytest.mark.skipif(sys.platform == "win32", reason="needs SIGKILL and a fork server")


@pytest.mark.parametrize("stop", [1, 7, 11])
def test_a_resumed_run_equals_an_uninterrupted_one(tmp_path: Path, stop: int) -> None:
    whole = run_in(tmp_path / "whole", SMALL)
    parts = run_in(tmp_path / "parts", replace(SMALL, steps=stop))
    train(SMALL, parts, resume=True)
    records, expected_records = (
        [{**record, "validation": None} for record in run.read_metrics()] for run in (parts, whole)
    )
    assert records == expected_records  # the first part was also validated at its end
    expected = last_tensors(whole)
    for name, tensor in last_tensors(parts).items():
        assert torch.equal(tensor, expected[name]), name


def test_training_on_does_not_change_the_checkpoint_it_was_restored_from(tmp_path: Path) -> None:
    checkpoint = load_checkpoint(run_in(tmp_path / "run", replace(SMALL, steps=2)).last)
    before = {name: tensor.clone() for name, tensor in checkpoint.tensors.items()}
    network = checkpoint.network().train()
    optimizer = adam(network, checkpoint.config)
    checkpoint.restore(network, None, optimizer)
    for parameter in network.parameters():
        parameter.grad = torch.ones_like(parameter)
    optimizer.step()
    for name, tensor in checkpoint.tensors.items():
        assert torch.equal(tensor, before[name]), name


def test_an_interrupt_takes_effect_after_the_step_and_the_run_can_be_resumed(tmp_path: Path) -> None:
    run = Run(tmp_path)

    def interrupt(progress: Progress) -> None:
        if progress.step == 5:
            os.kill(os.getpid(), signal.SIGINT)

    with pytest.raises(KeyboardInterrupt):
        train(SMALL, run, on_step=interrupt)
    assert load_checkpoint(run.last).step == 5
    assert [record["step"] for record in run.read_metrics()] == [1, 2, 3, 4, 5]
    train(SMALL, run, resume=True)
    whole = run_in(tmp_path / "whole", SMALL)
    assert run.metrics.read_bytes() == whole.metrics.read_bytes()


def test_a_finished_run_is_not_resumed(tmp_path: Path) -> None:
    run = run_in(tmp_path, SMALL)
    with pytest.raises(InputError, match="12 steps"):
        train(SMALL, run, resume=True)


@pytest.mark.parametrize("stop", [2, 6, 13])
def test_a_run_with_every_kind_of_state_resumes_exactly(tmp_path: Path, stop: int) -> None:
    """With dropout, schedule, averaged weights, and shuffled and augmented data."""
    whole = run_in(tmp_path / "whole", DIGITS)
    parts = Run(tmp_path / "parts")
    parts.folder.mkdir()

    def interrupt(progress: Progress) -> None:
        if progress.step == stop:
            os.kill(os.getpid(), signal.SIGTERM)

    with pytest.raises(KeyboardInterrupt):
        train(DIGITS, parts, on_step=interrupt)
    assert load_checkpoint(parts.last).step == stop
    train(DIGITS, parts, resume=True)
    assert parts.metrics.read_bytes() == whole.metrics.read_bytes()
    for one, other in ((parts.last, whole.last), (parts.best, whole.best)):
        assert one.read_bytes() == other.read_bytes()


def size_of(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0


@needs_kill
def test_a_run_that_is_killed_repeatedly_equals_an_uninterrupted_one(tmp_path: Path) -> None:
    """SIGKILL arrives between steps, within one, or while a checkpoint is written."""
    config = replace(DIGITS, steps=40, evaluate_every=2)
    whole, run = run_in(tmp_path / "whole", config), Run(tmp_path / "killed")
    run.folder.mkdir()
    rng, kills = np.random.default_rng(0), 0
    while not run.last.exists() or load_checkpoint(run.last).step < config.steps:
        process = processes().Process(target=train, args=(config, run, run.last.exists()))
        process.start()
        before = size_of(run.metrics)
        while process.is_alive() and size_of(run.metrics) == before:
            time.sleep(0.002)
        process.join(rng.exponential(0.05))
        kills += process.is_alive()
        process.kill()
        process.join()
    assert kills
    assert run.metrics.read_bytes() == whole.metrics.read_bytes()
    assert run.last.read_bytes() == whole.last.read_bytes()
    assert run.best.read_bytes() == whole.best.read_bytes()


def test_resuming_drops_a_line_that_a_killed_run_left_half_written(tmp_path: Path) -> None:
    run = run_in(tmp_path, replace(SMALL, steps=3))
    with run.metrics.open("a") as file:
        file.write('{"step": 4, "lo')
    train(SMALL, run, resume=True)
    assert [record["step"] for record in run.read_metrics()] == list(range(1, 13))


TRAIN = ("train", "--size", "5x6", "--batch-size", "4", "--hidden", "4")


@needs_kill
@pytest.mark.parametrize("name", ["result.json", "curves.png", "prediction.png"])
def test_a_run_that_is_killed_after_its_last_step_is_concluded(name: str, tmp_path: Path) -> None:
    run = Run(tmp_path / "run")
    kill_at(name, main, [*TRAIN, "--steps", "4", "-o", str(run.folder)], cwd=tmp_path)
    assert load_checkpoint(run.last).step == 4
    assert not run.is_evaluated
    last, metrics, times = run.last.read_bytes(), run.metrics.read_bytes(), run.read_times()
    done = mdlstm("train", "--resume", run.folder, "--json")
    assert done.code == 0, done.err
    assert run.is_evaluated
    assert (run.last.read_bytes(), run.metrics.read_bytes(), run.read_times()) == (last, metrics, times)
    result = json.loads(done.out)
    assert (result["step"], result["errors"]) == (4, json.loads(run.result.read_text())["errors"])
    assert mdlstm("train", "--resume", run.folder).code == 2  # now it is complete


@needs_kill
def test_an_old_result_does_not_make_a_killed_run_count_as_complete(tmp_path: Path) -> None:
    run = Run(tmp_path / "run")
    assert mdlstm(*TRAIN, "--steps", "3", "-o", run.folder).code == 0
    kill_at("result.json", main, ["train", "--resume", str(run.folder), "--steps", "5"], cwd=tmp_path)
    assert not run.result.exists() and not run.prediction.exists()
    done = mdlstm("train", "--resume", run.folder)
    assert done.code == 0, done.err
    assert run.is_evaluated
    assert json.loads(run.result.read_text())["step"] == load_checkpoint(run.best).step


def test_a_run_that_stopped_early_is_concluded_and_not_trained_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    errors = count(1)
    monkeypatch.setattr(trainer, "evaluate", lambda *_: {"error": float(next(errors))})  # ever larger
    run = run_in(tmp_path, replace(SMALL, steps=50, evaluate_every=2, patience=2))
    assert load_checkpoint(run.last).step == 6
    before = run.last.read_bytes()
    job = resume_job(run.folder)
    assert job.is_trained
    run_job(job)
    draw_run(run)
    assert run.last.read_bytes() == before
    with pytest.raises(InputError, match="patience"):
        resume_job(run.folder)
    assert not resume_job(run.folder, {}, {"patience": "0"}).is_trained


def test_times_are_summed_over_interruptions(tmp_path: Path) -> None:
    run = run_in(tmp_path, replace(SMALL, steps=5))
    first = run.read_times()
    train(SMALL, run, resume=True)
    times = run.read_times()
    assert (first.steps, times.steps) == (5, 12)
    assert times.training > first.training > 0
    assert times.validation > first.validation > 0
    result = evaluate_run(run, make_task(SMALL))
    assert result["seconds"] == round(times.training, 1)
    assert result["steps_per_second"] == pytest.approx(12 / times.training, abs=1e-3)
    run_in(tmp_path, replace(SMALL, steps=2))  # not resumed: another run
    assert run.read_times().steps == 2


def test_a_new_run_in_a_used_folder_keeps_nothing_of_the_old_one(tmp_path: Path) -> None:
    run = run_in(tmp_path, SMALL)
    run.result.write_text("{}")

    def interrupt(progress: Progress) -> None:
        os.kill(os.getpid(), signal.SIGINT)

    with pytest.raises(KeyboardInterrupt):
        train(replace(SMALL, hidden=3), run, on_step=interrupt)
    assert load_checkpoint(run.best).config.hidden == 3
    assert not run.result.exists()
