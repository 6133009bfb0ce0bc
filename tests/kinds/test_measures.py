"""The measures of each kind: equal to those of scikit-learn, however samples are divided and padded."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from helpers.training import SMALL
from sklearn import metrics

from mdlstm_tk.data import UNLABELLED, Batch, DatasetTask, TaskSpec
from mdlstm_tk.errors import InputError
from mdlstm_tk.kinds import training_of
from mdlstm_tk.kinds.sums import confusion
from mdlstm_tk.kinds.tag_training import _best_threshold
from mdlstm_tk.training.evaluation import best_measure, measure_split, score

CLASSES = ("a", "b", "c", "never there")
COUNT = 150  # more than two batches of an evaluation

Samples = list[tuple[np.ndarray, Any]]


def test_scores_with_nan_count_as_wrong_in_every_measure() -> None:
    y = np.array([0, 0, 0, 1])
    counts = confusion(torch.full((4, 2), torch.nan), Batch(np.zeros((4, 2, 2, 1)), y))
    assert counts.tolist() == [[0, 3], [1, 0]]


def labels_of(samples: Samples, predictions: list[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    y = np.concatenate([np.ravel(y) for _, y in samples])
    predicted = np.concatenate([p.argmax(-1).ravel() for p in predictions])
    return y[y != UNLABELLED], predicted[y != UNLABELLED]


def expected_of_classes(samples: Samples, predictions: list[np.ndarray]) -> dict[str, float]:
    y, predicted = labels_of(samples, predictions)
    return {
        "error": float(np.mean(y != predicted)),
        "balanced_error": 1 - metrics.balanced_accuracy_score(y, predicted),
        "f1_macro": metrics.f1_score(y, predicted, average="macro"),
    }


def expected_of_masks(samples: Samples, predictions: list[np.ndarray]) -> dict[str, float]:
    y, predicted = labels_of(samples, predictions)
    iou = metrics.jaccard_score(y, predicted, average="macro")
    return {"error": float(np.mean(y != predicted)), "iou": iou}


def numbers_of(samples: Samples, predictions: list[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    y = np.concatenate([np.reshape(y, (-1, 2)) for _, y in samples])
    predicted = np.concatenate([p.reshape(-1, 2) for p in predictions])
    return y.astype(np.float32).astype(np.float64), predicted.astype(np.float64)


def expected_of_grids(samples: Samples, predictions: list[np.ndarray]) -> dict[str, float]:
    y, predicted = numbers_of(samples, predictions)
    mse = metrics.mean_squared_error(y, predicted)
    return {"mse": mse, "rmse": mse**0.5, "r2": metrics.r2_score(y, predicted)}


def expected_of_numbers(samples: Samples, predictions: list[np.ndarray]) -> dict[str, float]:
    y, predicted = numbers_of(samples, predictions)
    nmse = metrics.mean_squared_error(y / STD, predicted / STD)
    return {"nmse": nmse, "r2": metrics.r2_score(y, predicted)}


def expected_of_tags(samples: Samples, predictions: list[np.ndarray]) -> dict[str, float]:
    y, scores = (np.array(each) for each in (([y for _, y in samples]), predictions))
    p = 1 / (1 + np.exp(-scores.astype(np.float64)))

    f1 = {each: float(metrics.f1_score(y, p >= 0.5, average=each)) for each in ("micro", "macro")}
    return {
        "hamming_loss": metrics.hamming_loss(y, p >= 0.5),
        "f1_micro": f1["micro"],
        "f1_macro": f1["macro"],
    }


STD = np.array([3.0, 0.5])
MEAN = np.array([1e5, -7.0])  # far from 0, where sums of squares lose digits
Make = Callable[[np.random.Generator, tuple[int, int]], Any]
CASES: dict[str, tuple[Make, dict[str, Any], Callable[..., dict[str, float]]]] = {
    "classify": (
        lambda rng, size: int(rng.integers(3)),
        {"outputs": 4, "classes": CLASSES},
        expected_of_classes,
    ),
    "segment": (
        lambda rng, size: rng.integers(-1, 3, size),
        {"outputs": 4, "classes": CLASSES},
        expected_of_masks,
    ),
    "grid": (
        lambda rng, size: (MEAN + STD * rng.standard_normal((*size, 2))).astype(np.float32),
        {"outputs": 2, "target_mean": tuple(MEAN), "target_std": tuple(STD)},
        expected_of_grids,
    ),
    "tag": (
        lambda rng, size: tuple(map(float, rng.random(3) < (0.5, 0.3, 0.1))),
        {"outputs": 3, "classes": CLASSES[:3]},
        expected_of_tags,
    ),
    "regress": (
        lambda rng, size: tuple(MEAN + STD * rng.standard_normal(2)),
        {"outputs": 2, "classes": ("p", "q"), "target_mean": tuple(MEAN), "target_std": tuple(STD)},
        expected_of_numbers,
    ),
}


class Guess(torch.nn.Module):
    """Returns numbers that depend on each sample alone, and anything outside of its valid extents."""

    def __init__(self, spec: TaskSpec) -> None:
        super().__init__()
        self.spec, self.weight = spec, torch.nn.Parameter(torch.zeros(()))

    def forward(self, x: torch.Tensor, sizes: torch.Tensor | None = None) -> torch.Tensor:
        scale = torch.tensor(self.spec.target_std or (1.0,)).float()
        mean = torch.tensor(self.spec.target_mean or (0.0,)).float()
        y = torch.sin(1e4 * x[..., :1] * torch.arange(1, self.spec.outputs + 1)) * scale + mean
        if self.spec.kind in ("grid", "segment"):
            return y
        return y[:, 0, 0]  # (N, outputs)


@pytest.mark.parametrize("mixed", [False, True])
@pytest.mark.parametrize("kind", CASES)
def test_measures_are_those_of_scikit_learn(kind: str, mixed: bool) -> None:
    make, fields, expected = CASES[kind]
    rng = np.random.default_rng(0)
    sizes = [(int(rng.integers(3, 6)), 4) if mixed else (4, 4) for _ in range(COUNT)]
    samples = [(rng.random((*size, 1), np.float32), make(rng, size)) for size in sizes]
    spec = TaskSpec("t", kind, 1, size=(5, 4) if mixed else (4, 4), **fields)
    network = Guess(spec)
    task = DatasetTask(spec, {"validation": samples})
    errors, sums = measure_split(network, task, "validation", SMALL)
    with torch.no_grad():
        predictions = [network(torch.from_numpy(x[None]))[0].numpy() for x, _ in samples]
    wanted = expected(samples, predictions)
    assert list(errors) == list(wanted)
    assert errors == pytest.approx(wanted, rel=1e-6)
    names = (*training_of(kind).error_names, *training_of(kind).further_measures)
    assert list(errors) == list(names)  # what `best_by` may name
    outputs = training_of(kind).outputs(sums, spec)
    if kind == "classify":
        y, predicted = labels_of(samples, predictions)
        f1 = metrics.f1_score(y, predicted, average=None, labels=range(3))
        assert [outputs[name]["f1"] for name in CLASSES[:3]] == pytest.approx(f1.tolist())
        assert outputs["never there"]["recall"] is None  # 0 of 0
    if kind == "regress":
        y, predicted = numbers_of(samples, predictions)
        for k, name in enumerate(("p", "q")):
            column = outputs[name]
            assert column["mae"] == pytest.approx(
                metrics.mean_absolute_error(y[:, k], predicted[:, k]), 1e-5
            )
            assert column["r2"] == pytest.approx(metrics.r2_score(y[:, k], predicted[:, k]), rel=1e-5)


@pytest.mark.parametrize("number", [3.0, 0.1])
def test_equal_numbers_have_no_r2(number: float) -> None:
    spec = TaskSpec("t", "regress", 1, 1, (2, 2), ("p",), target_mean=(3.0,), target_std=(1.0,))
    batch = Batch(np.zeros((3, 2, 2, 1), np.float32), np.full((3, 1), number, np.float32))
    kind = training_of("regress")
    sums = {"numbers": kind.statistics(torch.ones(3, 1), batch, spec)["numbers"].numpy()}
    assert np.isnan(kind.summarize({}, sums, spec)["r2"])
    error = pytest.approx(abs(number - 1))
    assert kind.outputs(sums, spec)["p"] == {"rmse": error, "mae": error, "r2": None}


def test_best_by_names_a_measure_and_knows_its_direction() -> None:
    spec, sample = TaskSpec("t", "classify", 1, 4, (2, 2), CLASSES), (np.zeros((2, 2, 1), np.float32), 0)
    task = DatasetTask(spec, {"validation": [sample]})
    errors = {"error": 0.25, "balanced_error": 0.5, "f1_macro": 0.75}
    scores = {name: score(task, SMALL.updated({"best_by": name}, "test"), errors) for name in errors}
    assert scores == {"error": 0.25, "balanced_error": 0.5, "f1_macro": -0.75}
    assert score(task, SMALL, errors) == 0.25
    with pytest.raises(InputError, match="error, balanced_error, f1_macro"):
        best_measure(task, SMALL.updated({"best_by": "iou"}, "test"))
    with pytest.raises(InputError, match="needs validation data, of which"):
        best_measure(DatasetTask(spec, {"train": [sample]}), SMALL.updated({"best_by": "error"}, "test"))


def test_the_threshold_of_tags_has_the_largest_f1_and_all_measures_are_taken_with_it() -> None:
    rng = np.random.default_rng(1)
    y = (rng.random((80, 3)) < 0.4).astype(np.float32)
    scores = (2 * y - 2 + rng.standard_normal(y.shape)).astype(np.float32)  # most lie below one half
    spec = TaskSpec("t", "tag", 1, 3, (2, 2), CLASSES[:3])
    kind, batch = training_of("tag"), Batch(np.zeros((80, 2, 2, 1), np.float32), y)
    histograms = kind.statistics(torch.from_numpy(scores), batch, spec)["histograms"].double().numpy()
    best = _best_threshold(histograms)
    p = 1 / (1 + np.exp(-scores.astype(np.float64)))
    by_threshold = {t: metrics.f1_score(y, p >= t, average="micro") for t in np.arange(1, 100) / 100}
    assert by_threshold[best] == pytest.approx(max(by_threshold.values())) and best < 0.5
    spec = replace(spec, threshold=best)
    wrong, count = kind.measures(torch.from_numpy(scores), batch, spec)["hamming_loss"]
    measured = {
        "hamming_loss": float(wrong) / count,
        **kind.summarize({}, {"histograms": histograms}, spec),
    }
    assert measured == pytest.approx(
        {
            "hamming_loss": metrics.hamming_loss(y, p >= best),
            "f1_micro": by_threshold[best],
            "f1_macro": metrics.f1_score(y, p >= best, average="macro"),
        }
    )


def test_predictions_that_are_no_numbers_are_wrong() -> None:
    x, nan = np.zeros((2, 2, 2, 1), np.float32), torch.full((2, 4), torch.nan)
    spec = TaskSpec("t", "classify", 1, 4, (2, 2), CLASSES)
    assert training_of("classify").measures(nan, Batch(x, np.array([0, 1])), spec)["error"][0] == 2
    tags, y = TaskSpec("t", "tag", 1, 4, (2, 2), CLASSES), np.zeros((2, 4), np.float32)
    assert training_of("tag").measures(nan, Batch(x, y), tags)["hamming_loss"][0] == 8
    assert training_of("tag").statistics(nan, Batch(x, y), tags)["histograms"].sum() == 8


def test_texts_are_measured_without_the_steps_that_see_padding() -> None:
    rng = np.random.default_rng(0)
    spec = TaskSpec("t", "transcribe", 1, 3, (4, 24), ("a", "b"))
    y = rng.integers(1, 3, (9, 4))
    widths = rng.integers(8, 25, 9)
    widths[0] = 24
    sizes = np.stack([np.full(9, 4), widths], axis=1)
    logits = torch.from_numpy(rng.standard_normal((9, 6, 3)).astype(np.float32))
    kind, x = training_of("transcribe"), np.zeros((9, 4, 24, 1), np.float32)
    alone = [
        kind.measures(
            logits[k : k + 1, : -(-width // 4)], Batch(x[k : k + 1, :, :width], y[k : k + 1]), spec
        )
        for k, width in enumerate(widths)
    ]
    expected = {
        name: tuple(map(sum, zip(*(each[name] for each in alone), strict=True))) for name in alone[0]
    }
    assert kind.measures(logits, Batch(x, y, sizes), spec) == expected
