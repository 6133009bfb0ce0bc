"""Learning rate, clipping, averaging, divergence, patience and the choice of the best checkpoint."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers.training import SMALL, last_tensors, run_in

from mdlstm_tk.data import DiagonalTask
from mdlstm_tk.errors import MDLSTMError
from mdlstm_tk.training import Run, TrainConfig, build, evaluate, load_checkpoint, train
from mdlstm_tk.training.distributed import DistributedContext
from mdlstm_tk.training.losses import learning_rate
from mdlstm_tk.training.trainer import Trainer


def test_the_learning_rate_warms_up_and_falls_to_zero() -> None:
    config = TrainConfig(lr=0.1, steps=100, warmup=10, schedule="cosine")
    rates = [learning_rate(config, step) for step in range(100)]
    np.testing.assert_allclose(rates[:10], np.arange(1, 11) / 100)
    assert max(rates) == rates[9] == rates[10] == 0.1
    assert rates[55] == pytest.approx(0.05)
    assert 0 < rates[-1] < 0.001
    assert all(a >= b for a, b in pairwise(rates[10:]))
    assert {learning_rate(replace(config, schedule="constant"), step) for step in (10, 99, 200)} == {0.1}


def test_the_norm_of_the_whole_gradient_is_clipped(tmp_path: Path) -> None:
    """Adam's first step does not depend on the scale of the gradient, but its first moment does."""
    run_in(tmp_path / "free", replace(SMALL, steps=1))
    run_in(tmp_path / "clipped", replace(SMALL, steps=1, clip=1e-4))
    moments = [
        torch.cat(
            [t.flatten() for name, t in last_tensors(Run(tmp_path / n)).items() if name.endswith("exp_avg")]
        )
        for n in ("free", "clipped")
    ]
    free, clipped = (float(moment.norm()) / 0.1 for moment in moments)
    assert free > 1e-3
    assert clipped == pytest.approx(1e-4, rel=0.02)  # clip_grad_norm_ adds 1e-6 to the norm


def test_the_averaged_weights_are_validated_and_exported(tmp_path: Path) -> None:
    config = replace(SMALL, average=0.9, steps=6, evaluate_every=6)
    run = run_in(tmp_path, config)
    tensors = last_tensors(run)
    network = load_checkpoint(run.last).network().state_dict()
    for name, tensor in network.items():
        assert torch.equal(tensor, tensors[f"average.module.{name}"])
    assert any(not torch.equal(tensors[f"model.{name}"], tensor) for name, tensor in network.items())
    validation = run.read_metrics()[-1]["validation"]
    assert (
        evaluate(load_checkpoint(run.last).network(), build(config)[1], "validation", config) == validation
    )


def test_the_average_decays_as_configured(tmp_path: Path) -> None:
    config = replace(SMALL, average=0.3, steps=5)
    _, task = build(config)
    trainer = Trainer(config, task, DistributedContext(0, 1, torch.device("cpu")))
    name, expected = "head.weight", None
    for step in range(5):
        trainer.train_step(task.batch(0, step, 4), interrupted=False)
        weight = trainer.network.state_dict()[name].clone()
        decay = min(0.3, (1 + step) / (10 + step))
        expected = weight if expected is None else decay * expected + (1 - decay) * weight
    assert trainer.average is not None
    torch.testing.assert_close(trainer.average.module.state_dict()[name], expected)


@pytest.mark.parametrize("clip", [0.0, 1.0])
def test_divergence_is_reported_and_keeps_the_weights_before_it(tmp_path: Path, clip: float) -> None:
    class Poisoned(DiagonalTask):
        def batch(self, seed: int, step: int, count: int, *rest: Any, **more: Any) -> Any:
            batch = super().batch(seed, step, count, *rest, **more)
            if step == 7:
                batch.y[0, 0, 0] = np.inf
            return batch

    config = replace(SMALL, clip=clip)
    with pytest.raises(MDLSTMError, match=r"step 8.*inf.*--lr"):
        train(config, Run(tmp_path), task=Poisoned((5, 6)))
    last = load_checkpoint(Run(tmp_path).last)
    assert last.step == 7
    assert all(bool(tensor.isfinite().all()) for tensor in last.tensors.values())
    whole = run_in(tmp_path / "whole", replace(config, steps=7))
    assert all(torch.equal(tensor, last.tensors[name]) for name, tensor in last_tensors(whole).items())


def test_training_stops_when_patience_is_exhausted(tmp_path: Path) -> None:
    class NeverImproving(DiagonalTask):
        def measure(self, prediction: Any, batch: Any) -> dict[str, tuple[float, float]]:
            self.calls = getattr(self, "calls", 0) + 1
            return {"relevant": (float(self.calls), 1)}

    config = replace(SMALL, steps=50, evaluate_every=3, patience=4)
    progress = train(config, Run(tmp_path), task=NeverImproving((5, 6)))
    assert progress.step == 3 + 4 * 3
    assert load_checkpoint(Run(tmp_path).best).step == 3
    assert load_checkpoint(Run(tmp_path).last).best_step == 3


@pytest.mark.parametrize(
    ("scores", "best_step"), [((3, 1, 2, 1.5), 6), ((3, 2, 1, 1), 12), ((1, 2, 2, 3), 3)]
)
def test_the_best_checkpoint_holds_the_weights_with_the_lowest_score(
    tmp_path: Path, scores: tuple[float, ...], best_step: int
) -> None:
    """The scores of the four validations are given; of equal ones the later counts."""

    class Scored(DiagonalTask):
        def measure(self, prediction: Any, batch: Any) -> dict[str, tuple[float, float]]:
            if len(batch.x) == SMALL.batch_size:  # a training batch
                return super().measure(prediction, batch)
            return {"relevant": (next(upcoming), 1)}

        def any_size_tasks(self) -> Any:
            return (self,)

    upcoming = iter(scores)
    run = Run(tmp_path / "run")
    run.folder.mkdir()
    train(replace(SMALL, evaluate_every=3), run, task=Scored((5, 6)))
    best = load_checkpoint(run.best)
    assert (best.step, best.best_step, best.score) == (best_step, best_step, min(scores))
    assert load_checkpoint(run.last).score == min(scores)
    expected = last_tensors(run_in(tmp_path / "until best", replace(SMALL, steps=best_step)))
    for name, tensor in best.tensors.items():
        assert torch.equal(tensor, expected[name]), name
