"""A forward that decides by extents is right on every grid that its file takes, or it is refused."""

from __future__ import annotations

import operator
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers.networks import Function
from torch import Tensor, nn

from mdlstm_tk.errors import InputError, MDLSTMError, ParityError
from mdlstm_tk.export import export_onnx, float64_reference
from mdlstm_tk.export.capture import traced
from mdlstm_tk.export.conditions import Conditions
from mdlstm_tk.runtime import Session

Condition = Callable[[Any, Any, Any], Any]  # of the batch, the height and the width
COMPARISONS = (operator.lt, operator.le, operator.gt, operator.ge, operator.eq, operator.ne)
AXES = {"x": [0, 1, 2]}
COUNT, TRIALS = 40, 3000  # 240 were drawn once


def drawn(rng: np.random.Generator, depth: int = 2) -> tuple[Condition, list[int]]:
    """A random condition, and the numbers in it."""
    values: list[Condition] = [
        lambda n, h, w: h,
        lambda n, h, w: w,
        lambda n, h, w: h * w,
        lambda n, h, w: h + w,
        lambda n, h, w: h - w,
        lambda n, h, w: (h + 1) // 2,
        lambda n, h, w: n,
    ]
    value, compare = values[rng.integers(len(values))], COMPARISONS[rng.integers(len(COMPARISONS))]
    number = int(rng.choice([1, 3, 17, 20, 32, 40, 64, 100, 300, 1024, 3000, 250000]))
    multiple = int(rng.integers(2, 12))
    kind = rng.integers(4 if depth else 2)
    if kind == 0:
        return lambda n, h, w: value(n, h, w) % multiple == number % multiple, [multiple]
    if kind == 1:
        return lambda n, h, w: compare(value(n, h, w), number), [number]
    (first, own), (second, others) = drawn(rng, depth - 1), drawn(rng, depth - 1)
    if kind == 2:
        return lambda n, h, w: first(n, h, w) and second(n, h, w), own + others
    return lambda n, h, w: first(n, h, w) or second(n, h, w), own + others


class Deciding(nn.Module):
    def __init__(self, condition: Condition) -> None:
        super().__init__()
        self.condition = condition

    def forward(self, x: Tensor) -> Tensor:
        return 2 * x if self.condition(*x.shape[:3]) else x


def refusal(condition: Condition) -> str:
    """Why a network with this condition is refused; "" if it is not."""
    program = traced(Deciding(condition), {"x": torch.zeros(2, 85, 115, 1)}, AXES)
    return Conditions.of(program, AXES).refused({0: 2, 1: 16, 2: 16}, dict.fromkeys(AXES["x"], 1))


def test_a_drawn_condition_is_the_same_on_every_grid_or_it_is_refused() -> None:
    rng, refused = np.random.default_rng(0), 0
    for _ in range(COUNT):
        condition, numbers = drawn(rng)
        if refusal(condition):
            refused += 1
            continue
        near = [n + d for n in numbers for d in (-1, 0, 1) if 16 <= n + d < 2**20] or [16]
        extents = np.where(
            rng.random((TRIALS, 2)) < 0.3, rng.choice(near, (TRIALS, 2)), rng.integers(16, 400, (TRIALS, 2))
        )
        truth = bool(condition(2, 85, 115))
        for batch, (height, width) in zip(rng.integers(2, 40, TRIALS), extents.tolist(), strict=True):
            assert bool(condition(int(batch), height, width)) == truth, (batch, height, width, numbers)
    assert 0 < refused < COUNT


REVIEWED: dict[str, Condition] = {
    "a range of both": lambda n, h, w: 20 <= h <= 40 and 20 <= w <= 40,
    "one grid": lambda n, h, w: (h, w) == (32, 32),
    "large": lambda n, h, w: h * w > 250000,
    "remainders": lambda n, h, w: h % 7 == 3 and w % 11 == 5,
    "both long": lambda n, h, w: h > 300 and w > 300,
    "long": lambda n, h, w: h > 3000,
    "one number of positions": lambda n, h, w: h * w == 1225,
    "each 25th batch": lambda n, h, w: n % 25 == 0,
    "a batch of positions": lambda n, h, w: n * h * w > 9999,
}


def test_conditions_that_once_gave_wrong_files_are_refused() -> None:
    assert [name for name, condition in REVIEWED.items() if not refusal(condition)] == []


ASKED: dict[str, Callable[[Tensor], Tensor]] = {
    "two extents": lambda y: 2 * y if y.shape[1] > 300 and y.shape[2] > 300 else y,
    "rows": lambda y: torch.stack([y[:, row] for row in range(y.shape[1])], dim=1),
    "values": lambda y: 2 * y if y.max() > 0 else y,
}


@pytest.mark.parametrize("name", ASKED)
def test_a_decision_gets_one_line_and_no_file(
    name: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(MDLSTMError) as raised:
        export_onnx(Function(after=ASKED[name]), tmp_path / "m.onnx", form="scan")
    assert "\n" not in str(raised.value) and not list(tmp_path.iterdir())
    assert capfd.readouterr() == ("", "")  # torch prints pages of its graph


def test_small_grids_are_verified_by_number(tmp_path: Path) -> None:
    """Conditions hold from 16 on; a branch for three rows is refused, unless the file takes more alone."""
    net = Function(after=lambda y: y if y.shape[1] > 3 else -y)
    with pytest.raises(ParityError):
        export_onnx(net, tmp_path / "m.onnx", form="scan")
    report = export_onnx(net, tmp_path / "m.onnx", form="scan", min_grid=(4, 1))
    session = Session(report.path, "cpu")
    assert session.metadata.min_grid == (4, 1)
    with pytest.raises(InputError):
        session(np.zeros((3, 5)))


def test_a_crop_is_what_the_network_does_and_grids_without_a_number_are_not_taken(tmp_path: Path) -> None:
    """The deviation of one position is NaN."""
    net = Function(after=lambda y: y[:, :30] / (1 + y.std((1, 2), keepdim=True)))
    session = Session(export_onnx(net, tmp_path / "m.onnx", form="scan").path, "cpu")
    assert session.metadata.min_grid == (2, 2)
    for rows in (5, 30, 31, 70):
        x = np.random.default_rng(rows).random((2, rows, 3, 1), np.float32)
        np.testing.assert_allclose(session(x), float64_reference(net)(x), atol=1e-5)
