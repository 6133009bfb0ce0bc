"""The progress of a training, its rate, and the running means that a progress line shows. No torch."""

from __future__ import annotations

import math
import time
from collections import deque
from collections.abc import Sequence
from dataclasses import astuple, dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from mdlstm_tk._util.text import duration

WINDOW = 20  # steps in a running mean
OWN_KEYS = ("step", "loss", "lr", "validation")  # of a record, so that no error may be called so


@dataclass(frozen=True)
class Progress:
    """The state of training after a step.

    Attributes:
        step: optimizer steps done.
        loss: loss of the step's batch, computed before the weights changed; see `loss_of`.
        errors: errors of the same batch by name; see `Task.measure`.
        lr: learning rate of the step.
        validation: validation errors after the step; {} if the step was not followed by a validation.
        steps_per_second: mean rate of this process, without validations and without the first step, which
            compiles kernels; None until it is known.
        seconds_left: estimated time to the last step; None until it is known.
    """

    step: int
    loss: float = math.nan
    errors: dict[str, float] = field(default_factory=dict)
    lr: float = math.nan
    validation: dict[str, float] = field(default_factory=dict)
    steps_per_second: float | None = None
    seconds_left: float | None = None

    def record(self) -> dict[str, Any]:
        """The line of `metrics.jsonl` for this step."""
        record: dict[str, Any] = {"step": self.step, "loss": self.loss, **self.errors, "lr": self.lr}
        return record | ({"validation": self.validation} if self.validation else {})


@dataclass(frozen=True)
class TrainingTimes:
    """The times of a run in seconds, summed over the processes that trained it one after another.

    Attributes:
        steps: optimizer steps measured.
        training: time of these steps, including that of reading their data.
        validation: time of the validations.
        compilation: time by which the first step and the first validation of each process took longer than
            the mean of its others, because kernels were compiled or loaded.
    """

    steps: int = 0
    training: float = 0.0
    validation: float = 0.0
    compilation: float = 0.0

    def __add__(self, other: TrainingTimes) -> TrainingTimes:
        return TrainingTimes(*(a + b for a, b in zip(astuple(self), astuple(other), strict=True)))


class _Durations:
    """Durations of one kind in seconds. The first may include the compilation of kernels."""

    def __init__(self) -> None:
        self.count, self.first, self.sum = 0, 0.0, 0.0

    def add(self, seconds: float) -> None:
        self.first = self.first if self.count else seconds
        self.count, self.sum = self.count + 1, self.sum + seconds

    @property
    def mean(self) -> float | None:
        """The mean without the first one; None if there are no others."""
        return (self.sum - self.first) / (self.count - 1) if self.count > 1 else None

    @property
    def excess(self) -> float:
        """How much longer the first one took than the mean of the others; 0 if there are none."""
        return 0.0 if self.mean is None else max(0.0, self.first - self.mean)

    @property
    def total(self) -> float:
        """The sum of all without that excess."""
        return self.sum - self.excess


class StepTimer:
    """Measures the steps and the validations of this process, and what compiling kernels adds to the first.

    It takes the time since the previous call as that of what has ended; time for anything else, such as
    writing files, is skipped.
    """

    def __init__(self) -> None:
        self._steps, self._validations = _Durations(), _Durations()
        self._previous = time.perf_counter()

    def end_step(self) -> None:
        self._steps.add(self._lap())

    def end_validation(self) -> None:
        self._validations.add(self._lap())

    def skip(self) -> None:
        self._lap()

    def _lap(self) -> float:
        previous, self._previous = self._previous, time.perf_counter()
        return self._previous - previous

    @property
    def steps_per_second(self) -> float | None:
        """Mean rate of the steps, without the first and without validations; None if there is only one."""
        return None if self._steps.mean is None else 1 / max(self._steps.mean, 1e-9)

    def seconds_left(self, steps: int, validations: int) -> float | None:
        """Estimated time of further steps and validations; None until the rate is known."""
        if self._steps.mean is None:
            return None
        validation = self._validations.mean or self._validations.first
        return steps * self._steps.mean + validations * validation

    @property
    def times(self) -> TrainingTimes:
        """The times of this process so far."""
        steps, validations = self._steps, self._validations
        compilation = steps.excess + validations.excess
        return TrainingTimes(steps.count, steps.total, validations.total, compilation)


class RecentMetrics:
    """Means of loss and errors over the last `WINDOW` steps, and the latest validation errors."""

    def __init__(self) -> None:
        self._steps: deque[Progress] = deque(maxlen=WINDOW)
        self._validation: dict[str, float] = {}

    def add(self, progress: Progress) -> None:
        """Add a step."""
        self._steps.append(progress)
        if progress.validation:
            self._validation = progress.validation

    def describe(self) -> str:
        """A line such as "loss 0.012  relevant 0.03  validation relevant 0.02  41 steps/s"."""
        if not self._steps:
            return ""
        steps, rate = self._steps, self._steps[-1].steps_per_second
        values = {"loss": sum(step.loss for step in steps) / len(steps)}
        for name in dict.fromkeys(name for step in steps for name in step.errors):
            measured = [step.errors[name] for step in steps if name in step.errors]
            values[name] = sum(measured) / len(measured)
        values |= {f"validation {name}": error for name, error in self._validation.items()}
        parts = [f"{name} {value:.3g}" for name, value in values.items()]
        return "  ".join(parts if rate is None else [*parts, f"{format_rate(rate)} steps/s"])


def describe_times(times: TrainingTimes) -> str:
    """A text such as "trained for 35 s at 28 steps/s, validated for 1 s, compiled for 8 s"."""
    rate = f" at {format_rate(times.steps / times.training)} steps/s" if times.training else ""
    parts = [f"trained for {duration(times.training)}{rate}"]
    parts += [f"validated for {duration(times.validation)}"] * (times.validation > 0)
    parts += [f"compiled for {duration(times.compilation)}"] * (times.compilation > 0)
    return ", ".join(parts)


def format_rate(rate: float) -> str:
    """A rate as text; below 10 with decimals."""
    return f"{rate:.0f}" if rate >= 10 else f"{rate:.1f}" if rate >= 1 else f"{rate:.2g}"


def running_mean(values: Sequence[float]) -> npt.NDArray[np.float64]:
    """The mean of the last `WINDOW` values at each step; of fewer values at the start.

    A value that is not finite, as the error of a batch without labels, shows in the means that include it.
    """
    padded = np.concatenate([np.zeros(WINDOW), values])
    sums = np.convolve(padded, np.ones(WINDOW))[WINDOW : len(padded)]
    return sums / np.minimum(np.arange(1, len(values) + 1), WINDOW)
