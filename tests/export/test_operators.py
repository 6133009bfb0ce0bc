"""`mdlstm_tk.export.torch_ops`: each correction of torch's exporter; a test fails without it."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers.networks import Function
from torch import Tensor, nn
from torch.nn import functional

from mdlstm_tk.errors import InputError, MDLSTMError
from mdlstm_tk.export import export_onnx
from mdlstm_tk.runtime import Session

EDGES = [k * s for k in (0.0, 1e-6, 0.5, 1.0, 12.0, 20.0, 89.0, 1e4, 3e38) for s in (1.0, -1.0)]
OPERATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "logsigmoid": functional.logsigmoid,
    "cross-entropy": lambda x: functional.binary_cross_entropy_with_logits(
        x, torch.ones_like(x), reduction="none"
    ),
    "logaddexp": lambda x: torch.logaddexp(x, x.flip(1)),
    "logaddexp of equal ones": lambda x: torch.logaddexp(x, x),
}
TABLE = torch.arange(30.0).reshape(10, 3)
INDEXED: dict[str, Callable[[Tensor], Tensor]] = {  # of x (N, T, C) from 0 to 9
    "index_select": lambda x: torch.index_select(TABLE, 0, x.flatten()).reshape(*x.shape, 3),
    "gather": lambda x: TABLE.T.expand(*x.shape[:2], 3, 10).gather(-1, x[:, :, None].expand(-1, -1, 3, -1)),
    "scatter": lambda x: torch.zeros(*x.shape, 10).scatter(-1, x[..., None], 2.0),
    "scatter of whole numbers": lambda x: torch.zeros(*x.shape, 10, dtype=torch.long).scatter(
        -1, x[..., None], 2**24 + 1
    ),
    "scatter of numbers": lambda x: torch.zeros(*x.shape, 10).scatter(
        3, x[..., None], x[..., None].float()
    ),
    "scatter_add": lambda x: torch.zeros(*x.shape[:2], 10).scatter_add(2, x, x.float()),
    "one_hot": lambda x: functional.one_hot(x, 10),
    "one_hot by name": lambda x: functional.one_hot(input=x, num_classes=10).float(),
}


def integers(x: Tensor) -> Tensor:
    return (1000 * x).round().long()


DIVIDED: dict[str, Callable[[Tensor], Tensor]] = {
    "integers": lambda x: (10 * (integers(x) // 7)).float(),
    "integers, down": lambda x: torch.div(integers(x), -7, rounding_mode="floor").float(),
    "integers, towards 0": lambda x: torch.div(integers(x), 7, rounding_mode="trunc").float(),
    "large integers": lambda x: (torch.div(integers(x) + 2**40, 3, rounding_mode="floor") % 1000).float(),
    "integers, exactly": lambda x: torch.div(integers(x), 7, rounding_mode=None),
}


class Alone(nn.Module):
    def __init__(self, operation: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.operation = operation

    def forward(self, x: Tensor) -> Tensor:
        return self.operation(x)


@pytest.mark.parametrize("name", INDEXED)
def test_indices_that_torch_refuses_are_refused(name: str, tmp_path: Path) -> None:
    network, example = Alone(INDEXED[name]), torch.randint(10, (2, 4, 5))
    export_onnx(network, tmp_path / "m.onnx", example, channels_last=True, form="scan")
    session, x = Session(tmp_path / "m.onnx", device="cpu"), torch.randint(10, (3, 6, 5))
    np.testing.assert_array_equal(session(x.numpy()), network(x))
    for wrong in (-1, -3, 10):
        x[0, 2, 1] = wrong
        with pytest.raises((IndexError, RuntimeError), match=r"out of|non-negative|smaller than"):
            network(x)
        with pytest.raises(MDLSTMError, match="ONNX Runtime failed"):
            session(x.numpy())


def test_one_index_keeps_its_axis(tmp_path: Path) -> None:
    network, x = Alone(lambda x: x.index_select(1, torch.tensor(1))), torch.randn(2, 4, 5)
    export_onnx(network, tmp_path / "m.onnx", x, channels_last=True, form="scan")
    np.testing.assert_array_equal(Session(tmp_path / "m.onnx", device="cpu")(x.numpy()), network(x))


@pytest.mark.parametrize("name", DIVIDED)
def test_quotients_of_integers_are_those_of_torch(name: str, tmp_path: Path) -> None:
    network = Alone(DIVIDED[name])
    export_onnx(network, tmp_path / "m.onnx", torch.randn(2, 8, 1), channels_last=True, form="scan")
    tenths = np.arange(-60, 60) / 10
    x = np.concatenate([tenths, 7 * tenths, 1000 * tenths, [1e10, -1e10]]).astype(np.float32)[None, :, None]
    y = Session(tmp_path / "m.onnx", device="cpu")(x)
    np.testing.assert_array_equal(y, network(torch.from_numpy(x)))


@pytest.mark.parametrize("name", OPERATIONS)
def test_operations_hold_at_the_edges_of_float32(name: str, tmp_path: Path) -> None:
    operation = OPERATIONS[name]
    options = {"channels_last": True, "form": "scan"}
    export_onnx(Alone(operation), tmp_path / "m.onnx", torch.randn(2, 8, 1), **options)
    x = np.array(EDGES, np.float32).reshape(1, -1, 1)
    y = Session(tmp_path / "m.onnx", device="cpu")(x)
    least = 1e-30 if name in ("logsigmoid", "cross-entropy") else 1e-6  # angles are rounded near pi
    np.testing.assert_allclose(y, operation(torch.from_numpy(x)), rtol=1e-5, atol=least)


def test_extents_are_divided_as_in_python(tmp_path: Path) -> None:
    net = Function(after=lambda y: y.index_select(1, torch.arange(-(-y.shape[1] // 2))))
    path = export_onnx(net, tmp_path / "m.onnx", form="scan", channels=1).path
    assert Session(path, "cpu")(np.zeros((1, 9, 4, 1), np.float32)).shape == (1, 5, 4, 2)


@pytest.mark.parametrize(
    ("rounded", "is_exact"),
    [
        (lambda n: math.floor(n * 0.7), False),
        (lambda n: math.ceil(n / 1.3), False),
        (lambda n: math.ceil((n - 0.1) / 2), False),
        (lambda n: math.floor(n * 0.75), False),
        (lambda n: math.ceil(n / 3), True),
    ],
    ids=["floor", "ceil", "sum", "three quarters", "third"],
)
def test_extents_that_are_rounded_are_those_of_python(
    rounded: Callable[[Any], int], is_exact: bool, tmp_path: Path
) -> None:
    """⌊90 · 0.7⌋ is 62, and in float32 63."""
    net = Function(after=lambda y: y[:, : rounded(y.shape[1])])
    if not is_exact:
        with pytest.raises(MDLSTMError, match="rounds what it computes from an extent"):
            export_onnx(net, tmp_path / "m.onnx", form="scan", channels=1)
        return
    path = export_onnx(net, tmp_path / "m.onnx", form="scan", channels=1).path
    session = Session(path, "cpu")
    for extent in (3, 4, 17, 59):
        assert session(np.zeros((1, extent, 3, 1), np.float32)).shape[1] == rounded(extent)


RESIZED: dict[str, tuple[dict[str, Any], bool | None]] = {  # options; whether Resize is used; None: refused
    "a size": ({"size": (7, 5)}, False),
    "one extent for both": ({"size": 14}, False),
    "exact": ({"size": (7, 5), "mode": "nearest-exact"}, False),
    "twice": ({"scale_factor": 2}, True),
    "half": ({"scale_factor": 0.5, "mode": "nearest-exact"}, False),
    "by a ratio": ({"scale_factor": 1.5, "recompute_scale_factor": True}, False),
    "linear to a size": ({"size": (7, 5), "mode": "bilinear"}, True),
    "linear, three times": ({"scale_factor": 3.0, "mode": "bilinear"}, True),
    "a third": ({"scale_factor": (1 / 3, 2)}, True),
    "an exact third": ({"scale_factor": (1 / 3, 2), "mode": "nearest-exact"}, False),
    "seven tenths": ({"scale_factor": 0.7}, None),
    "linear by 2.3": ({"scale_factor": 2.3, "mode": "bilinear"}, None),
}


@pytest.mark.parametrize("case", RESIZED)
def test_images_are_resized_as_by_torch_on_every_grid(case: str, tmp_path: Path) -> None:
    options, uses_resize = RESIZED[case]
    net = Function(after=lambda y: nn.functional.interpolate(y.movedim(-1, 1), **options).movedim(1, -1))
    if uses_resize is None:
        with pytest.raises(MDLSTMError, match="other extents in a file"):
            export_onnx(net, tmp_path / "m.onnx", form="scan", channels=1)
        return
    path = export_onnx(net, tmp_path / "m.onnx", form="scan", channels=1).path
    session = Session(path, "cpu")
    for extents in ((98, 8), (36, 75), (73, 65), (49, 98), (26, 102), (90, 30), (16, 50)):
        x = torch.rand(1, *extents, 1)
        with torch.no_grad():
            y = net(x).numpy()
        np.testing.assert_allclose(session(x.numpy()), y, rtol=0, atol=1e-5)


def test_a_grid_that_is_asked_for_free_is_not_fixed_without_a_word(tmp_path: Path) -> None:
    network = Function(after=lambda y: y.flatten(1) @ torch.ones(24, 3))  # of both extents
    for options in ({"grid": (None, None)}, {"form": "scan"}):
        with pytest.raises(InputError, match="it takes 3x4 only"):
            export_onnx(network, tmp_path / "m.onnx", torch.zeros(2, 3, 4, 1), **options)
    assert export_onnx(network, tmp_path / "m.onnx", torch.zeros(2, 3, 4, 1), grid=(3, 4)).max_abs < 1e-5
