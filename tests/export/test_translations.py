"""`mdlstm_tk.export.capturable`: operations at the edges of their range, and wrong indices."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from mdlstm_tk.errors import MDLSTMError
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
    "logaddexp2": lambda x: torch.logaddexp2(x, x.flip(1)),
    "atan2": lambda x: torch.atan2(x, x.flip(1)),
    "atan2 to the left": lambda x: torch.atan2(x, -torch.ones_like(x)),
    "atan2 below": lambda x: torch.atan2(-torch.ones_like(x), x),
    "atan2 on an axis": lambda x: torch.atan2(x, 0 * x),
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
    "//": lambda x: x // 0.1,
    "// of a negative number": lambda x: x // -0.7,
    "%": lambda x: x % 0.1,
    "% of a negative number": lambda x: x % -0.3,
    "% in place": lambda x: (x + 0).remainder_(1.5),
    "of tensors": lambda x: torch.floor_divide(x, torch.tensor([0.1])) + torch.remainder(x, 1 + 0 * x),
    "of a number": lambda x: 5 // (x.abs() + 0.5) + 7 % (x.abs() + 0.5),
    "down": lambda x: torch.div(x, 0.1, rounding_mode="floor"),
    "towards 0": lambda x: torch.div(x, 0.1, rounding_mode="trunc"),
    "integers": lambda x: (10 * (integers(x) // 7) + integers(x) % -7).float(),
    "integers, down": lambda x: torch.div(integers(x), -7, rounding_mode="floor").float(),
    "integers, towards 0": lambda x: torch.div(integers(x), 7, rounding_mode="trunc").float(),
    "large integers": lambda x: (torch.div(integers(x) + 2**40, 3, rounding_mode="floor") % 1000).float(),
    "integers by a float": lambda x: integers(x) // 0.5 + integers(x) % 0.3,
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
def test_quotients_are_rounded_as_by_torch(name: str, tmp_path: Path) -> None:
    """Also of multiples, whose quotients are rounded; 0.9 // 0.1 is 8."""
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
