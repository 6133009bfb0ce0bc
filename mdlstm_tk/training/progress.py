"""How far training is, how fast it runs, and the running means that a progress line shows. No torch."""

from __future__ import annotations

import math
import time
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

WINDOW = 20  # steps in a running mean


@dataclass(frozen=True)
class Progress:
    """The state of training after a step.

    Attributes:
        step: optimizer steps done.
        loss: loss of the step's batch, computed before the weights changed; see `loss_of`.
        errors: errors of the same batch by name; see `Task.measure`.
        lr: learning rate of the step.
        validation: validation errors after the step; {} if the step was not followed by a validation.
        steps_per_second: mean rate of this process, without the steps that compile kernels; None until
            it is known.
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


class StepTimer:
    """Measures the rate of steps. Warm-up steps, in which kernels are compiled, do not count."""

    def __init__(self) -> None:
        self._previous = time.perf_counter()
        self._steps = 0
        self._seconds = 0.0

    def tick(self, warm_up: bool) -> None:
        """Note that a step has ended; `warm_up` excludes it from the rate."""
        now = time.perf_counter()
        if not warm_up:
            self._steps += 1
            self._seconds += now - self._previous
        self._previous = now

    @property
    def steps_per_second(self) -> float | None:
        """Mean rate of the steps that count; None if there are none."""
        return self._steps / max(self._seconds, 1e-9) if self._steps else None


class RecentMetrics:
    """Means of loss and errors over the last `WINDOW` steps, and the latest validation errors."""

    def __init__(self) -> None:
        self._steps: deque[dict[str, float]] = deque(maxlen=WINDOW)
        self._validation: dict[str, float] = {}

    def update(self, progress: Progress) -> dict[str, float]:
        """Add a step; returns the means, then the validation errors as "validation NAME"."""
        self._steps.append({"loss": progress.loss, **progress.errors})
        self._validation.update({f"validation {k}": v for k, v in progress.validation.items()})
        means = {k: sum(step[k] for step in self._steps) / len(self._steps) for k in self._steps[-1]}
        return means | self._validation


def describe_progress(progress: Progress, metrics: Mapping[str, float]) -> str:
    """A line such as "loss 0.012  relevant 0.03  41 steps/s"; `metrics` come from `RecentMetrics`."""
    parts = [f"{name} {value:.3g}" for name, value in metrics.items()]
    if progress.steps_per_second is not None:
        parts.append(f"{format_rate(progress.steps_per_second)} steps/s")
    return "  ".join(parts)


def format_rate(rate: float) -> str:
    """A rate as text; below 10 with decimals."""
    return f"{rate:.0f}" if rate >= 10 else f"{rate:.1f}" if rate >= 1 else f"{rate:.2g}"


def running_mean(values: Sequence[float]) -> npt.NDArray[np.float64]:
    """The mean of the last `WINDOW` values at each step; of fewer values at the start."""
    total = np.cumsum(np.asarray(values, dtype=np.float64))
    total[WINDOW:] -= total[:-WINDOW].copy()
    return total / np.minimum(np.arange(1, len(values) + 1), WINDOW)
