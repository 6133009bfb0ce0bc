"""The progress of a training run: which weights are its best, whether it is done, its learning rate.

Nothing else decides these. No torch.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from math import cos, inf, isnan, pi

from mdlstm_tk._util.text import counted, duration
from mdlstm_tk.training.config import TrainConfig

RESUMED_WARMUP = 100  # steps in which the rate of a resumed run may rise to its peak, if it has no warm-up


@dataclass(frozen=True)
class RunState:
    """The state of a run after a step, without its tensors.

    Attributes:
        step: optimizer steps done.
        seconds: time that a run with `minutes` has trained for, validations included; else 0.
        lr: learning rate of the last step; 0 before the first.
        score: lowest validation score, see `Task.score`; infinity before the first validation.
        best_step: last step with that score; without validation data the latest step that would have been
            validated; 0 before.
        stale: validations since the score last fell. One that equals the lowest score counts, too.
        validated: last step with a validation, or that would have been validated if there were data for it.
        validated_on: digest of the user's validation samples that the score is of; "" of generated ones.
    """

    step: int = 0
    seconds: float = 0.0
    lr: float = 0.0
    score: float = inf
    best_step: int = 0
    stale: int = 0
    validated: int = 0
    validated_on: str = ""

    @property
    def is_best(self) -> bool:
        """True if the present weights are the best; they are until a validation gives a number."""
        return self.best_step in (0, self.step)

    def is_complete(self, config: TrainConfig) -> bool:
        """True if all steps are done, or with `minutes` the time is over."""
        return self.seconds >= 60 * config.minutes if config.minutes else self.step >= config.steps

    def has_stopped(self, config: TrainConfig) -> bool:
        """True if `config.patience` validations in a row brought no improvement."""
        return 0 < config.patience <= self.stale

    def is_done(self, config: TrainConfig) -> bool:
        """True if nothing is left to train."""
        return self.is_complete(config) or self.has_stopped(config)

    def describe(self, config: TrainConfig) -> str:
        """How far a run has come, to follow "has", such as "done 3000 steps"."""
        if self.has_stopped(config) and not self.is_complete(config):
            return (
                f"stopped at step {self.step}, after {counted(self.stale, 'validation')} in a row without "
                f"improvement (patience {config.patience}), at a learning rate of {self.lr:.2g}, "
                f"{self.lr / config.lr:.0%} of its peak"
            )
        if config.minutes:
            return f"trained for {duration(self.seconds)}"
        return f"done {counted(self.step, 'step')}"

    def rate(self, config: TrainConfig) -> float:
        """The learning rate of the next step: that of the schedule, but no faster rise than in a warm-up.

        A run that goes on with more steps or minutes thus climbs to the rate of its longer schedule.
        """
        rate = scheduled_rate(config, self.step, self.seconds)
        return min(rate, self.lr + rise(config)) if self.step else rate

    def after_validation(self, score: float | None) -> RunState:
        """The state after a validation with this score; None if there are no validation data."""
        state = replace(self, validated=self.step)
        if score is None:
            return replace(state, best_step=self.step)
        if score < self.score:
            return replace(state, score=score, best_step=self.step, stale=0)
        best_step = self.step if score == self.score else self.best_step
        return replace(state, best_step=best_step, stale=self.stale + 1)

    def measured_again(self, score: float | None, validated_on: str) -> RunState:
        """The state after the best weights have been measured on other validation data."""
        score = inf if score is None or isnan(score) else score
        return replace(self, score=score, stale=0, validated_on=validated_on)

    def describe_rise(self, old: TrainConfig, new: TrainConfig) -> list[str]:
        """A line that says if changed settings let the learning rate of a resumed run rise again."""
        before, target = (scheduled_rate(each, self.step, self.seconds) for each in (old, new))
        if target <= max(before, self.lr):
            return []
        return [
            f"the schedule of the run is stretched: its learning rate rises from {self.lr:.2g} towards "
            f"{target:.2g}, by at most {rise(new):.2g} a step"
        ]


def rise(config: TrainConfig) -> float:
    """By how much the learning rate may rise in a step; in a warm-up it does, but for rounding."""
    return config.lr / (config.warmup or RESUMED_WARMUP) * (1 + 1e-9)


def scheduled_rate(config: TrainConfig, step: int, seconds: float = 0.0) -> float:
    """The learning rate of a step in a run that is trained as it was begun.

    It rises linearly during the warm-up, then stays constant or falls to 0 along half a cosine: until the
    last step, or with `minutes` until that time is over.

    Args:
        config: of the run.
        step: counted from 0.
        seconds: time that the run has trained for.
    """
    peak = min(config.lr * (step + 1) / max(config.warmup, 1), config.lr)
    if config.schedule == "constant":
        return peak
    if config.minutes:
        fraction = seconds / (60 * config.minutes)
    else:
        fraction = max(step - config.warmup, 0) / max(config.steps - config.warmup, 1)
    return peak * (1 + cos(pi * min(fraction, 1.0))) / 2
