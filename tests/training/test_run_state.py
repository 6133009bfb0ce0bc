"""What a run state decides: the best weights, when training is done, and the learning rate."""

from __future__ import annotations

import json
import math
import warnings
from collections.abc import Iterator
from dataclasses import replace
from itertools import count, pairwise, repeat
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from helpers.training import SMALL, fail_at, run_in
from helpers.user_data import write_texts

from mdlstm_tk.data import DiagonalTask
from mdlstm_tk.errors import InputError, MDLSTMError
from mdlstm_tk.export import export_run
from mdlstm_tk.text.decoding import DECODING_FILE, LM_FILE, read_run
from mdlstm_tk.training import Run, TrainConfig, load_checkpoint, loop, new_job, resume_job, train
from mdlstm_tk.training import trainer as trainer_module
from mdlstm_tk.training.run_state import RESUMED_WARMUP, RunState, rise, scheduled_rate
from mdlstm_tk.training.settings import configure_resumed
from mdlstm_tk.training.trainer import Trainer

SECONDS = 1.5  # that pass in a step
SCHEDULE = TrainConfig(lr=0.1, steps=300, schedule="cosine")


def rates(state: RunState, config: TrainConfig, steps: int) -> tuple[RunState, list[float]]:
    """The learning rates of some steps, of which each takes a second with `minutes`."""
    result = []
    for _ in range(min(steps, 10_000 if config.minutes else config.steps - state.step)):
        result.append(state.rate(config))
        state = replace(
            state, step=state.step + 1, lr=result[-1], seconds=state.step * bool(config.minutes)
        )
    return state, result


@pytest.mark.parametrize("warmup", [0, 20])
@pytest.mark.parametrize("stop", [10, 150, 290, 300])
@pytest.mark.parametrize("changes", [{}, {"steps": 305}, {"steps": 900}, {"steps": 180}, {"minutes": 9.0}])
def test_the_rate_of_a_resumed_run_rises_no_faster_than_in_a_warm_up(
    warmup: int, stop: int, changes: dict[str, Any]
) -> None:
    old = replace(SCHEDULE, warmup=warmup)
    new, (state, before) = replace(old, **changes), rates(RunState(), old, stop)
    notes, (last, after) = state.describe_rise(old, new), rates(state, new, 600)
    assert before == [scheduled_rate(old, step) for step in range(stop)]
    assert all(b - a <= 1.001 * rise(new) for a, b in pairwise([before[-1], *after]))
    assert bool(notes) == (max([0, *after]) > before[-1] and stop > warmup)
    if len(after) > RESUMED_WARMUP or not changes:
        assert state.is_done(new) or after[-1] == scheduled_rate(new, last.step - 1, last.seconds - 1)


def test_the_learning_rate_warms_up_and_falls_to_zero() -> None:
    config = TrainConfig(lr=0.1, steps=100, warmup=10, schedule="cosine")
    rates = [scheduled_rate(config, step) for step in range(100)]
    np.testing.assert_allclose(rates[:10], np.arange(1, 11) / 100)
    assert max(rates) == rates[9] == rates[10] == 0.1
    assert rates[55] == pytest.approx(0.05)
    assert 0 < rates[-1] < 0.001
    assert all(a >= b for a, b in pairwise(rates[10:]))
    assert {scheduled_rate(replace(config, schedule="constant"), step) for step in (10, 99, 200)} == {0.1}


class Scored(DiagonalTask):
    """A task whose validations have drawn scores, with ties and NaN; it can make training diverge."""

    def __init__(self, rng: np.random.Generator) -> None:
        super().__init__((5, 6))
        self.rng, self.scores, self.poisoned = rng, list[float](), -1

    def score(self, errors: Any) -> float:
        self.scores.append(float(self.rng.choice([1.0, 2.0, 3.0, math.nan])))
        return self.scores[-1]

    def batch(self, seed: int, step: int, *rest: Any, **options: Any) -> Any:
        batch = super().batch(seed, step, *rest, **options)
        if step == self.poisoned and "shard" in options:
            batch.y[0, 0] = math.inf
        return batch


@pytest.mark.parametrize("seed", range(12))
def test_a_run_that_is_stopped_and_resumed_at_random_keeps_its_promises(
    seed: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Five parts, each of which ends by itself, by Ctrl-C or by divergence; settings change between."""
    rng, clock = np.random.default_rng(seed), count(0.0, SECONDS)
    monkeypatch.setattr(loop, "time", SimpleNamespace(perf_counter=lambda: next(clock)))
    task, run, weights = Scored(rng), Run(tmp_path / "run"), list[dict[str, torch.Tensor]]()
    validate, steps = Trainer.validate, list[int]()

    def follow(trainer: Trainer) -> dict[str, float]:
        steps.append(trainer.state.step)
        weights.append({k: v.clone() for k, v in trainer.network_to_validate.state_dict().items()})
        return validate(trainer)

    monkeypatch.setattr(Trainer, "validate", follow)
    config = replace(
        SMALL,
        steps=int(rng.integers(4, 20)),
        evaluate_every=int(rng.integers(2, 4)),
        schedule=str(rng.choice(["constant", "cosine"])),
        warmup=int(rng.choice([0, 5])),
        average=float(rng.choice([0.0, 0.5])),
        patience=int(rng.choice([0, 2])),
    )
    job = new_job(config, run.folder, task=task)
    for _ in range(5):
        end, at = rng.choice(["itself", "Ctrl-C", "divergence"]), job.steps_done + int(rng.integers(1, 7))
        task.poisoned = at if end == "divergence" else -1
        try:
            train(job, fail_at(at if end == "Ctrl-C" else -1))
            for picture in (run.curves, run.prediction):
                picture.touch()  # which the command line draws
        except (KeyboardInterrupt, MDLSTMError):
            assert end != "itself"
        last, best, records = load_checkpoint(run.last), load_checkpoint(run.best), run.read_metrics()
        state = last.state
        assert [record["step"] for record in records] == list(range(1, state.step + 1))
        assert all(tensor.isfinite().all() for tensor in last.tensors.values())
        assert all(b["lr"] - a["lr"] <= 1.001 * rise(config) for a, b in pairwise(records))
        stale, lowest = 0, math.inf
        for score in task.scores:
            stale, lowest = (
                (0 if score < lowest else stale + 1),
                min(score, lowest, key=lambda s: (s != s, s)),
            )
        if lowest in task.scores:
            k = max(k for k, score in enumerate(task.scores) if score == lowest)
            assert (best.state.score, best.step, state.best_step) == (lowest, steps[k], steps[k])
            assert all(torch.equal(tensor, weights[k][name]) for name, tensor in best.weights().items())
        else:
            assert best.step == state.step
        more = {"steps": state.step + int(rng.integers(1, 9)), "minutes": 0.0, "patience": 0}
        settings: list[dict[str, Any]] = [
            {},
            {"steps": more["steps"]},
            {"patience": int(rng.integers(1, 5))},
            {"minutes": (state.seconds + SECONDS * int(rng.integers(1, 9))) / 60},
        ]
        changes = settings[rng.integers(len(settings))]
        new = configure_resumed(last.config, changes)
        is_over = state.seconds >= 60 * new.minutes if new.minutes else state.step >= new.steps
        is_done = is_over or 0 < new.patience <= stale
        if is_done and run.is_evaluated:
            with pytest.raises(
                InputError, match=r"already; ask for more|stopped at .*go on with --patience 0"
            ):
                resume_job(run.folder, changes, task=task)
            changes, is_done = more, False
        job = resume_job(run.folder, changes, task=task)
        assert job.is_trained == is_done


@pytest.mark.parametrize(("scores", "best_step"), [(count(), 3), (repeat(1), 15)])
def test_training_stops_when_patience_is_exhausted(
    tmp_path: Path, scores: Iterator[int], best_step: int
) -> None:
    """Scores that equal the best one are no improvement, though the later weights count as the best."""
    config = replace(SMALL, steps=50, evaluate_every=3, patience=4, schedule="cosine", lr=0.01)
    task = DiagonalTask((5, 6))
    task.score = lambda errors: float(next(scores))  # type: ignore[method-assign]
    run = run_in(tmp_path, config, task)
    assert load_checkpoint(run.best).step == best_step
    last = load_checkpoint(run.last)
    assert (last.step, last.state.best_step) == (3 + 4 * 3, best_step)
    assert "stopped at step 15" in (ending := run.read_result()["ending"])
    assert "validations in a row without improvement" in ending
    assert f"{run.read_metrics()[-1]['lr']:.2g}, 82% of its peak" in ending


@pytest.mark.parametrize("validation", [0.0, 0.2])
@pytest.mark.parametrize("patience", [0, 4])
def test_a_patience_that_ends_nothing_is_told(patience: int, validation: float, tmp_path: Path) -> None:
    config = replace(SMALL, task="digits", size="8x8", patience=patience, validation=validation)
    note = "patience (--patience) ends no training, as there are no validation data"
    assert (note in new_job(config, tmp_path / "run").notes) == (patience > 0 and validation == 0)


def test_a_kill_between_both_checkpoints_leaves_no_best_that_the_run_does_not_know(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The run goes on from step 3, or from 6, which with changed data may be worse than before."""
    written, save, task = count(), trainer_module.save_checkpoint, Scored(np.random.default_rng(0))

    def killed(*arguments: Any) -> None:
        if next(written) > 2:  # two at step 3, and the first of two at step 6
            raise KeyboardInterrupt
        save(*arguments)

    monkeypatch.setattr(trainer_module, "save_checkpoint", killed)
    scores = iter([2.0, 1.0, 3.0, 3.0, 3.0])
    monkeypatch.setattr(task, "score", lambda errors: next(scores))
    with pytest.raises(KeyboardInterrupt):
        run_in(tmp_path, replace(SMALL, evaluate_every=3), task)
    monkeypatch.undo()
    monkeypatch.setattr(task, "score", lambda errors: next(scores))
    train(resume_job(tmp_path, task=task))
    run = Run(tmp_path)
    assert load_checkpoint(run.best).step == load_checkpoint(run.last).state.best_step
    assert run.read_result()["step"] == load_checkpoint(run.best).step


def test_a_best_checkpoint_of_another_training_is_not_taken_for_that_of_the_run(tmp_path: Path) -> None:
    run = run_in(
        tmp_path / "run", replace(SMALL, evaluate_every=3), task := Scored(np.random.default_rng(7))
    )
    assert load_checkpoint(run.last).state.best_step not in (0, 12)
    run.best.unlink()
    job = resume_job(run.folder, {"steps": 14}, task=task)
    assert "chosen anew" in job.notes[0]
    train(job)
    assert run.best.exists()


def test_the_calibration_belongs_to_the_run_and_says_whose_weights_it_is_for(tmp_path: Path) -> None:
    changes = {"task": "transcribe", "data": str(write_texts(tmp_path / "lines", 12)), "size": ""}
    config = SMALL.updated({**changes, "steps": 3, "layers": 1, "evaluate_every": 3}, "test")
    run = run_in(tmp_path / "run", config)
    files = [(run.folder / name).read_bytes() for name in (LM_FILE, DECODING_FILE)]
    with pytest.raises(KeyboardInterrupt):
        train(resume_job(run.folder, {"steps": 9}), fail_at(5))
    assert [(run.folder / name).read_bytes() for name in (LM_FILE, DECODING_FILE)] == files
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        read_run(run, load_checkpoint(run.best).step)
    with pytest.warns(UserWarning, match="calibrated at step 3, and its weights are of step 9"):
        read_run(run, 9)
    result = train(resume_job(run.folder))
    assert json.loads((run.folder / DECODING_FILE).read_text())["step"] == result["step"]
    assert result["in_sample"]
    with pytest.raises(KeyboardInterrupt):  # a new run keeps nothing of it
        run_in(run.folder, config, on_step=fail_at(1))
    assert not (run.folder / LM_FILE).exists()
    with pytest.warns(UserWarning, match="has not been calibrated"):
        export_run(run, form="scan")
