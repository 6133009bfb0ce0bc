"""Rates and running means of a training run."""

from __future__ import annotations

from itertools import pairwise
from types import SimpleNamespace

import numpy as np
import pytest

from mdlstm_tk.training import Progress, RecentMetrics, describe_progress
from mdlstm_tk.training import progress as progress_module
from mdlstm_tk.training.progress import WINDOW, StepTimer, format_rate, running_mean


def test_running_mean() -> None:
    values = list(np.random.default_rng(0).random(50))
    expected = [np.mean(values[max(0, k - 19) : k + 1]) for k in range(50)]
    np.testing.assert_allclose(running_mean(values), expected)


def test_the_rate_leaves_out_steps_that_compile(monkeypatch: pytest.MonkeyPatch) -> None:
    times = iter([0.0, 60.0, 60.5, 90.0, 90.5])
    monkeypatch.setattr(progress_module, "time", SimpleNamespace(perf_counter=lambda: next(times)))
    timer = StepTimer()
    rates = []
    for warm_up in (True, False, True, False):
        timer.tick(warm_up)
        rates.append(timer.steps_per_second)
    assert rates == [None, 2.0, 2.0, 2.0]


def test_rates_below_10_keep_decimals() -> None:
    rates = [0.0341, 0.5, 3.21, 9.96, 10.4, 1234.5]
    texts = [format_rate(rate) for rate in rates]
    assert texts == ["0.034", "0.5", "3.2", "10.0", "10", "1234"]
    assert all(float(a) <= float(b) for a, b in pairwise(texts))


def test_the_progress_line_shows_recent_means_and_the_latest_validation() -> None:
    metrics = RecentMetrics()
    for step in range(1, 2 * WINDOW + 1):
        validation = {"error": 0.25} if step == 3 else {}
        state = Progress(step, float(step), {"error": 1.0}, 0.1, validation, steps_per_second=0.5)
        means = metrics.update(state)
    assert means == {"loss": WINDOW + (WINDOW + 1) / 2, "error": 1.0, "validation error": 0.25}
    line = describe_progress(state, means)
    assert "30.5" in line and "0.25" in line and "0.5 steps/s" in line
    assert "steps/s" not in describe_progress(Progress(1, 1.0), {"loss": 1.0})
