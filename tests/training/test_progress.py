"""Rates and running means of a training run."""

from __future__ import annotations

from itertools import accumulate
from types import SimpleNamespace

import numpy as np
import pytest

from mdlstm_tk.training import Progress, RecentMetrics
from mdlstm_tk.training import progress as progress_module
from mdlstm_tk.training.progress import WINDOW, StepTimer, TrainingTimes, describe_times, running_mean


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
    monkeypatch.setattr(progress_module, "time", SimpleNamespace(perf_counter=lambda: next(clock)))
    timer = StepTimer()
    for method, _ in laps:
        getattr(timer, method)()
    assert (timer.times, timer.steps_per_second) == (times, rate)
    assert timer.seconds_left(steps=10, validations=2) == left


def test_times_are_added_and_described_with_their_rate() -> None:
    half = TrainingTimes(50, training=25.0, validation=0.5, compilation=3.5)
    text = describe_times(half + half)
    assert "50.0 s at 2.0 steps/s" in text and "7.0 s" in text
    assert "steps/s" not in describe_times(TrainingTimes())


def test_the_progress_line_shows_recent_means_and_the_latest_validation() -> None:
    metrics = RecentMetrics()
    assert metrics.describe() == ""
    metrics.add(Progress(0, 9.0))
    assert metrics.describe() == "loss 9"
    for step in range(1, 2 * WINDOW + 1):
        validation = {"error": 0.25} if step == 3 else {}
        metrics.add(Progress(step, float(step), {"error": 1.0}, 0.1, validation, steps_per_second=0.5))
    assert metrics.describe() == "loss 30.5  error 1  validation error 0.25  0.5 steps/s"
