"""Measures equal those of scikit-learn, however samples are divided into batches and padded."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from sklearn import metrics

from mdlstm_tk.data.task import UNLABELLED, Batch, Dataset, TaskSpec, collate
from mdlstm_tk.errors import InputError
from mdlstm_tk.kinds import kind_named
from mdlstm_tk.training.evaluation import add_up, measures_of, on_device, predictor

CLASSES = ("a", "b", "c", "never there")
STD = (1.0, 20.0)
CPU = torch.device("cpu")


class Given(torch.nn.Module):
    """A network that knows the predictions of samples, whose x holds their numbers."""

    def __init__(self, predictions: list[np.ndarray]) -> None:
        super().__init__()
        self.predictions, self.weight = predictions, torch.nn.Parameter(torch.zeros(1))

    def forward(self, x: torch.Tensor, sizes: torch.Tensor | None = None) -> torch.Tensor:
        chosen = [self.predictions[int(k)] for k in x.flatten(1)[:, 0]]
        grid = np.max([p.shape for p in chosen], axis=0)
        padded = np.full((len(chosen), *grid), 1e6, np.float32)  # which measures would show
        for row, p in zip(padded, chosen, strict=True):
            row[tuple(map(slice, p.shape))] = p
        return torch.from_numpy(padded)


def drawn(kind: str, count: int = 150) -> tuple[list[tuple[np.ndarray, Any]], list[np.ndarray], TaskSpec]:
    rng = np.random.default_rng(0)
    samples, predictions = [], []
    for k in range(count):
        grid = (3, 4 + k % 3)
        per_position = kind in ("segment", "grid")
        shape = grid if per_position else ()
        outputs = 2 if kind in ("grid", "regress") else len(CLASSES)
        y: Any = rng.integers(0, 3, shape)
        if kind == "segment":
            y[rng.random(shape) < 0.1] = UNLABELLED
        if kind in ("grid", "regress"):
            y = (rng.standard_normal((*shape, 2)) * STD + (0, 1000)).astype(np.float32)
        if kind == "tag":
            y = rng.integers(0, 2, len(CLASSES)) * (np.arange(len(CLASSES)) < 3)
        predictions.append(rng.standard_normal((*shape, outputs)).astype(np.float32))
        if kind in ("grid", "regress"):
            predictions[-1] = (y + rng.standard_normal(y.shape) * STD / 2).astype(np.float32)
        samples.append((np.full((*grid, 1), k, np.float32), y))
    names = ("one", "two") if kind == "regress" else () if kind == "grid" else CLASSES
    moments = ((0.0, 1000.0), STD) if kind in ("grid", "regress") else ((), ())
    spec = TaskSpec("t", kind, 1, outputs, (3, 6), names, target_mean=moments[0], target_std=moments[1])
    return samples, predictions, spec


def expected(kind: str, samples: list[Any], predictions: list[np.ndarray]) -> dict[str, float]:
    ys = [y for _, y in samples]
    if kind in ("classify", "segment"):
        y = np.concatenate([np.ravel(each) for each in ys])
        p = np.concatenate([each.argmax(-1).ravel() for each in predictions])
        y, p = y[y != UNLABELLED], p[y != UNLABELLED]
        if kind == "segment":
            return {"error": np.mean(y != p), "iou": metrics.jaccard_score(y, p, average="macro")}
        return {
            "error": np.mean(y != p),
            "balanced_error": 1 - metrics.balanced_accuracy_score(y, p),
            "f1_macro": metrics.f1_score(y, p, average="macro"),
        }
    if kind == "tag":
        y, p = np.array(ys), 1 / (1 + np.exp(-np.float64(predictions))) >= 0.5
        one, each = (metrics.f1_score(y, p, average=a, zero_division=np.nan) for a in ("micro", "macro"))
        return {"hamming_loss": metrics.hamming_loss(y, p), "f1_micro": one, "f1_macro": each}
    y, p = (
        np.concatenate([np.reshape(e, (-1, 2)) for e in each]).astype(float) for each in (ys, predictions)
    )
    nmse, r2 = metrics.mean_squared_error(y / STD, p / STD), metrics.r2_score(y, p)
    if kind == "regress":
        return {"nmse": nmse, "r2": r2}
    mse = metrics.mean_squared_error(y, p)
    return {"nmse": nmse, "mse": mse, "rmse": mse**0.5, "r2": r2}


@pytest.mark.filterwarnings("ignore:y_pred contains classes not in y_true")
@pytest.mark.parametrize("kind", ["grid", "classify", "segment", "regress", "tag"])
def test_measures_equal_those_of_scikit_learn(kind: str) -> None:
    samples, predictions, spec = drawn(kind)
    task = Dataset(spec, {"validation": samples}, kind_named(kind))
    measures = measures_of(task, add_up(Given(predictions), task, "validation"))
    assert measures == pytest.approx(expected(kind, samples, predictions), rel=1e-6)


def test_scores_with_nan_are_wrong_and_padding_never_counts() -> None:
    for kind in ("classify", "segment", "tag"):
        samples, predictions, spec = drawn(kind, 20)
        right = [np.full_like(p, np.nan) for p in predictions]
        task = Dataset(spec, {"validation": samples}, kind_named(kind))
        measures = measures_of(task, add_up(Given(right), task, "validation"))
        first = next(iter(measures.values()))
        assert first == pytest.approx(np.mean([y for _, y in samples]) if kind == "tag" else 1)


@pytest.mark.parametrize("kind", ["grid", "classify", "segment", "regress"])
def test_a_loss_is_the_mean_over_samples_of_their_own(kind: str) -> None:
    """So parts of a batch, as processes have them, have losses whose mean is that of the batch."""
    samples, predictions, spec = drawn(kind, 12)
    one, network = kind_named(kind), Given(predictions)

    def loss(some: list[Any]) -> float:
        batch = on_device(collate(one, some), CPU)
        return float(one.loss(network(batch.x), batch, spec))

    alone = [loss([sample]) for sample in samples]
    assert loss(samples) == pytest.approx(np.mean(alone), rel=1e-4)


def test_measures_of_ten_thousand_classes_cost_three_vectors() -> None:
    spec = TaskSpec("t", "classify", 1, 10_000, (1, 1), tuple(map(str, range(10_000))))
    kind, y = kind_named("classify"), torch.arange(64)
    batch: Any = Batch(torch.zeros(64, 1, 1, 1), y)
    scores = torch.eye(10_000)[:64]
    (sums,) = kind.sums(scores, batch, spec).values()
    assert sums.shape == (3, 10_000)
    assert kind.measures({"classes": sums.numpy()}, spec)["error"] == 0


@pytest.mark.parametrize("kind", ["grid", "regress"])
def test_a_prediction_of_another_shape_never_broadcasts(kind: str) -> None:
    samples, _, spec = drawn(kind, 4)
    batch = on_device(collate(kind_named(kind), samples), CPU)
    shape = (*batch.y.shape[:-1], 1)
    for method in ("loss", "sums"):
        with pytest.raises(InputError):
            getattr(kind_named(kind), method)(torch.zeros(shape), batch, spec)


def thresholds() -> Iterator[tuple[np.ndarray, np.ndarray, float]]:
    yield np.array([-2.0, -1.0, 1.0, 2.0]), np.array([0, 1, 1, 1]), 0.2
    yield np.array([-2.0, -1.0, 1.0, 2.0]), np.array([0, 0, 0, 1]), 0.8
    yield np.array([-1.0, 1.0]), np.array([0, 1]), 0.5  # of equal ones the nearest to a half
    yield np.array([-1.0, 1.0]), np.array([0, 0]), 0.5
    yield np.array([-100.0, 100.0]), np.array([0, 1]), 0.5


@pytest.mark.parametrize(("scores", "y", "best"), list(thresholds()))
def test_tag_chooses_the_threshold_of_the_best_f1(scores: Any, y: Any, best: float, tmp_path: Any) -> None:
    spec = TaskSpec("t", "tag", 1, 1, (1, 1), ("a",), decoding={"threshold": 0.5})
    samples = [(np.full((1, 1, 1), k, np.float32), [float(each)]) for k, each in enumerate(y)]
    task = Dataset(spec, {"validation": samples}, kind_named("tag"))
    network = Given([np.float32([score]) for score in scores])
    chosen = kind_named("tag").calibrate(predictor(network), task, tmp_path)["threshold"]
    p = 1 / (1 + np.exp(-scores))
    reachable = [metrics.f1_score(y, p >= k / 100, zero_division=0) for k in range(1, 100)]
    assert metrics.f1_score(y, p >= chosen, zero_division=0) == max(reachable)
    assert chosen == pytest.approx(best, abs=0.08)
