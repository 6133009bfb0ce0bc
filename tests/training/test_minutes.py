"""Training for a time instead of a number of steps, with a clock that the tests advance."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from helpers.training import SMALL, fail_at, resume, run_in

from mdlstm_tk import InputError
from mdlstm_tk.training import Run, load_checkpoint, loop, resume_job

TIMED = replace(SMALL, minutes=0.5, schedule="cosine", warmup=3, evaluate_every=10, average=0.9)
SECONDS = 1.5  # that pass from one look at the clock to the next


@pytest.fixture(autouse=True)
def _clock(monkeypatch: pytest.MonkeyPatch) -> None:
    class Clock:
        now = 0.0

        def perf_counter(self) -> float:
            self.now += SECONDS
            return self.now

    monkeypatch.setattr(loop, "time", Clock())


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
    assert load_checkpoint(run.last).seconds == 30
    assert run.read_metrics()[-1]["validation"]
    assert run.read_result()["step"] in (10, 20)


def test_a_resumed_run_has_the_time_that_was_left(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        run_in(tmp_path / "run", TIMED, on_step=fail_at(12))
    run = Run(tmp_path / "run")
    assert load_checkpoint(run.last).seconds == 12 * SECONDS
    assert len(rates(resume(run))) == 30 / SECONDS
    for picture in (run.curves, run.prediction):
        picture.touch()  # which the command line draws: nothing is left to do
    with pytest.raises(InputError, match=r"has trained for 0.5 minutes already; ask for more"):
        resume_job(run.folder)
    assert len(rates(resume(run, minutes=1.0))) == 60 / SECONDS


def test_a_run_of_steps_keeps_no_time(tmp_path: Path) -> None:
    run = run_in(tmp_path / "run", replace(TIMED, minutes=0.0))
    assert len(rates(run)) == TIMED.steps
    assert load_checkpoint(run.last).seconds == 0
