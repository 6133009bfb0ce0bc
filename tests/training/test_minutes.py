"""Training for minutes instead of steps, with a clock that the tests advance; times, rates and means."""

from __future__ import annotations

from dataclasses import replace
from itertools import accumulate, count
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from helpers.training import SMALL, fail_at, resume, run_in

from mdlstm_tk import InputError
from mdlstm_tk.report.plots import svg_curves
from mdlstm_tk.training import (
    Progress,
    RecentMetrics,
    Run,
    describe_run,
    load_checkpoint,
    loop,
    progress,
    resume_job,
)
from mdlstm_tk.training.progress import WINDOW, StepTimer, TrainingTimes, describe_times, running_mean
from mdlstm_tk.training.run_folder import metric_names

TIMED = replace(SMALL, minutes=0.5, schedule="cosine", warmup=3, evaluate_every=10, average=0.9)
SECONDS = 1.5  # that pass from one look at the clock to the next


@pytest.fixture(autouse=True)
def _clock(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = count(SECONDS, SECONDS)
    monkeypatch.setattr(loop, "time", SimpleNamespace(perf_counter=lambda: next(clock)))


def rates(run: Run) -> list[float]:
    return [record["lr"] for record in run.read_metrics()]


def test_training_ends_and_the_rate_falls_to_zero_when_the_time_is_over(tmp_path: Path) -> None:
    run = run_in(tmp_path / "run", TIMED)
    lr = rates(run)
    assert len(lr) == 30 / SECONDS
    assert lr[0] == pytest.approx(TIMED.lr / 3)
    assert max(lr) == lr[2]
    assert lr[10] == pytest.approx(TIMED.lr / 2)
    assert 0 < lr[-1] < 0.02 * TIMED.lr
    assert load_checkpoint(run.last).state.seconds == 30
    assert run.read_metrics()[-1]["validation"]
    assert run.read_result()["step"] in (10, 20)


def test_a_resumed_run_has_the_time_that_was_left(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        run_in(tmp_path / "run", TIMED, on_step=fail_at(12))
    run = Run(tmp_path / "run")
    assert load_checkpoint(run.last).state.seconds == 12 * SECONDS
    assert len(rates(resume(run))) == 30 / SECONDS
    for picture in (run.curves, run.prediction):
        picture.touch()  # which the command line draws: nothing is left to do
    with pytest.raises(InputError, match=r"has trained for 30 s already; ask for more"):
        resume_job(run.folder)
    assert len(rates(resume(run, minutes=1.0))) == 60 / SECONDS


def test_a_run_of_steps_keeps_no_time(tmp_path: Path) -> None:
    run = run_in(tmp_path / "run", replace(TIMED, minutes=0.0))
    assert len(rates(run)) == TIMED.steps
    assert load_checkpoint(run.last).state.seconds == 0


def test_running_mean() -> None:
    values = list(np.random.default_rng(0).random(50))
    expected = np.array([np.mean(values[max(0, k - 19) : k + 1]) for k in range(50)])
    np.testing.assert_allclose(running_mean(values), expected)
    values[25] = expected[25:45] = np.nan  # the error of a batch without labels
    np.testing.assert_allclose(running_mean(values), expected)
    assert len(running_mean([])) == 0


STEP, VALIDATION, WRITING = ("end_step", 0.5), ("end_validation", 4.0), ("skip", 7.0)
TIMES = {  # laps, their times, the rate, and the time of 10 more steps and 2 more validations
    "one step": ([WRITING, ("end_step", 60.5), WRITING], TrainingTimes(1, training=60.5), None, None),
    "a first step that compiles": (
        [("end_step", 60.5), STEP, VALIDATION, WRITING, STEP, WRITING],
        TrainingTimes(3, training=1.5, validation=4.0, compilation=60.0),
        2.0,
        5.0 + 8.0,
    ),
    "a first validation that compiles": (
        [STEP, ("end_validation", 11.0), STEP, ("end_validation", 3.0)],
        TrainingTimes(2, training=1.0, validation=6.0, compilation=8.0),
        2.0,
        5.0 + 6.0,
    ),
    "a first step that is faster": ([STEP, ("end_step", 3.0)], TrainingTimes(2, training=3.5), 1 / 3, 30.0),
}


@pytest.mark.parametrize("case", TIMES)
def test_times_leave_out_compiling_and_writing(case: str, monkeypatch: pytest.MonkeyPatch) -> None:
    laps, times, rate, left = TIMES[case]
    clock = accumulate((seconds for _, seconds in laps), initial=0.0)
    monkeypatch.setattr(progress, "time", SimpleNamespace(perf_counter=lambda: next(clock)))
    timer = StepTimer()
    for method, _ in laps:
        getattr(timer, method)()
    assert (timer.times, timer.steps_per_second) == (times, rate)
    assert timer.seconds_left(steps=10, validations=2) == left


def test_times_are_added_and_described_with_their_rate() -> None:
    half = TrainingTimes(50, training=25.0, validation=0.5, compilation=3.5)
    text = describe_times(half + half)
    assert text == "trained for 50 s at 2.0 steps/s, validated for 1 s, compiled for 7 s"
    assert describe_times(TrainingTimes(1, 0.01)) == "trained for less than 0.1 s at 100 steps/s"


def test_the_progress_line_shows_recent_means_and_the_latest_validation() -> None:
    metrics = RecentMetrics()
    assert metrics.describe() == ""
    metrics.add(Progress(0, 9.0))
    assert metrics.describe() == "loss 9"
    for step in range(1, 2 * WINDOW + 1):
        validation = {"error": 0.25} if step == 3 else {}
        metrics.add(Progress(step, float(step), {"error": 1.0}, 0.1, validation, steps_per_second=0.5))
    assert metrics.describe() == "loss 30.5  error 1  validation error 0.25  0.5 steps/s"


def test_errors_may_have_other_names_in_some_steps(tmp_path: Path) -> None:
    metrics, run = RecentMetrics(), run_in(tmp_path, replace(SMALL, steps=2))
    records: list[dict[str, Any]] = []
    for step, errors in enumerate([{"odd": 1.0}, {"even": 4.0, "both": 3.0}, {"odd": 2.0, "both": 5.0}], 1):
        records.append(Progress(step, 1.0, errors).record())
        metrics.add(Progress(step, 1.0, errors))
    assert metrics.describe() == "loss 1  odd 1.5  even 4  both 4"
    run.write_metrics(records)
    assert {"loss", "odd", "even", "both"} == set(metric_names(records))
    described = describe_run(run.folder)
    assert [described[f"last_100_{name}"] for name in ("odd", "even", "both")] == [1.5, 4.0, 4.0]
    assert len(svg_curves(records)) == 4
