"""`mdlstm bench`: what it counts and prints. No test asserts how fast anything is."""

from __future__ import annotations

import importlib

import pytest
import torch
from helpers.checkout import ROOT

from mdlstm_tk.backends.cpu.plan import plans
from mdlstm_tk.benchmark import SHAPES, Shape, floor, measure


def test_shape_from_text() -> None:
    shape = Shape.parse("16,8x12,1,32")
    assert shape == Shape(16, (8, 12), 1, 32)
    assert Shape.parse("1,4,2,3").grid == (4, 4)
    assert Shape.parse("1,2x3x4,2,3").grid == (2, 3, 4)
    assert str(shape) == "16, 8x12, 1, 32"
    assert len({str(shape) for shape in SHAPES}) == len(SHAPES)


def test_flops() -> None:
    """Two per multiplication of the input's C × G·n and the recurrent D·n × G·n at each position."""
    shape = Shape(3, (4, 5), 2, 7)
    assert shape.flops(False) == 2 * 3 * 20 * (2 + 14) * 5 * 7
    assert shape.flops(True) == 3 * shape.flops(False)
    assert shape.lstm_flops(False) == 2 * 3 * 20 * (2 + 7) * 4 * 7
    assert Shape(3, (4, 5), 2, 7, (("directions", "all"),)).flops(False) == 4 * shape.flops(False)
    assert shape.wavefronts == 8


@pytest.mark.parametrize("training", [False, True])
def test_floor_is_the_products_of_a_sweep(training: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    shape, products = Shape(3, (4, 5), 2, 7), []
    multiply = torch.mm

    def mm(a: torch.Tensor, b: torch.Tensor, **options: torch.Tensor) -> torch.Tensor:
        products.append(2 * a.shape[0] * a.shape[1] * b.shape[1])
        return multiply(a, b, **options)

    step = floor(shape, training)
    monkeypatch.setattr(torch, "mm", mm)
    step()
    first_wavefront = 2 * 3 * 14 * 35  # has no predecessors, so there is nothing to multiply
    dx = 2 * 3 * 20 * 2 * 35  # the gradient of the input data is not computed
    skipped = 2 * first_wavefront + dx if training else first_wavefront
    assert sum(products) == shape.flops(training) - skipped


def test_measurement() -> None:
    shape = Shape(1, (3, 4), 1, 2, (("cell", "leaky"),))
    row = measure(shape, training=True, seconds=0.0)
    assert row.shape == "1, 3x4, 1, 2, cell=leaky" and row.training and row.device == "cpu"
    assert row.backend == "fused" and row.wavefronts == 6
    assert row.peak_bytes > 12 * (5 + 2) * 2 * 4
    assert row.gflops == pytest.approx(shape.flops(True) / row.seconds / 1e9)
    assert row.to_lstm_per_flop / row.to_lstm == pytest.approx(shape.lstm_flops(True) / shape.flops(True))


def test_parts_of_a_sweep(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    parts = importlib.import_module("parts")
    row = parts.measure(Shape(1, (3, 2), 1, 2), training=False, seconds=0)
    assert len(row) == len(parts.COLUMNS) and all(text.endswith("%") for text in row[3:])
    assert parts._no_cell.address not in {plan.cell for plan in plans.values()}
