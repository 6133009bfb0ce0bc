"""Operations around a sweep: what torch's exporter gets wrong is right, and what is common needs no trust.

Each group is captured once, as one network with an output for each operation.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from helpers.networks import Function
from onnx.utils import Extractor
from torch import Tensor, nn
from torch.nn import functional

from mdlstm_tk.errors import MDLSTMError
from mdlstm_tk.export import export_onnx
from mdlstm_tk.runtime import Session

Operation = Callable[[Tensor], Tensor]
EDGES = [k * s for k in (0.0, 1e-6, 0.5, 1.0, 12.0, 20.0, 89.0, 1e4, 3e38) for s in (1.0, -1.0)]
AT_EDGES: dict[str, Operation] = {
    "logsigmoid": functional.logsigmoid,
    "entropy": lambda x: functional.binary_cross_entropy_with_logits(
        x, torch.ones_like(x), reduction="none"
    ),
    "logaddexp": lambda x: torch.logaddexp(x, x.flip(1)),
    "logaddexp_of_equal": lambda x: torch.logaddexp(x, x),
}
TABLE = torch.arange(30.0).reshape(10, 3)
INDEXED: dict[str, Operation] = {  # of x (N, T, C) from 0 to 9
    "index_select": lambda x: torch.index_select(TABLE, 0, x.flatten()).reshape(*x.shape, 3),
    "one_index": lambda x: x.index_select(1, torch.tensor(1)),
    "gather": lambda x: TABLE.T.expand(*x.shape[:2], 3, 10).gather(-1, x[:, :, None].expand(-1, -1, 3, -1)),
    "scatter": lambda x: torch.zeros(*x.shape, 10).scatter(-1, x[..., None], 2.0),
    "scatter_of_integers": lambda x: torch.zeros(*x.shape, 10, dtype=torch.long).scatter(
        -1, x[..., None], 2**24 + 1
    ),
    "scatter_of_numbers": lambda x: torch.zeros(*x.shape, 10).scatter(3, x[..., None], x[..., None] * 1.0),
    "scatter_add": lambda x: torch.zeros(*x.shape[:2], 10).scatter_add(2, x, x.float()),
    "one_hot": lambda x: functional.one_hot(x, 10),
    "one_hot_by_name": lambda x: functional.one_hot(input=x, num_classes=10).float(),
}


def integers(x: Tensor) -> Tensor:
    return (1000 * x).round().long()


DIVIDED: dict[str, Operation] = {
    "by_operator": lambda x: (10 * (integers(x) // 7)).float(),
    "down": lambda x: torch.div(integers(x), -7, rounding_mode="floor").float(),
    "towards_0": lambda x: torch.div(integers(x), 7, rounding_mode="trunc").float(),
    "large": lambda x: (torch.div(integers(x) + 2**40, 3, rounding_mode="floor") % 1000).float(),
    "exactly": lambda x: torch.div(integers(x), 7, rounding_mode=None),
}


class Many(nn.Module):
    def __init__(self, operations: Mapping[str, Operation]) -> None:
        super().__init__()
        self.operations = operations

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        return {name: operation(x) for name, operation in self.operations.items()}


def exported(operations: Mapping[str, Operation], example: Tensor, path: Path) -> Session:
    export_onnx(Many(operations), path, example, channels_last=True, form="scan")
    return Session(path, device="cpu")


def test_indices_that_torch_refuses_are_refused(tmp_path: Path) -> None:
    session = exported(INDEXED, torch.randint(10, (2, 4, 5)), tmp_path / "m.onnx")
    x = torch.randint(10, (3, 6, 5))
    for name, y in session(x.numpy()).items():
        np.testing.assert_array_equal(y, INDEXED[name](x), err_msg=name)
    extractor = Extractor(onnx.load(tmp_path / "m.onnx"))
    for name in INDEXED.keys() - {"one_index"}:
        alone = onnxruntime.InferenceSession(extractor.extract_model(["x"], [name]).SerializeToString())
        for wrong in (-1, -3, 10):
            x[0, 2, 1] = wrong
            with pytest.raises((IndexError, RuntimeError)):
                INDEXED[name](x)
            with pytest.raises(Exception, match=r"[Oo]ut of|bounds"):
                alone.run(None, {"x": x.numpy().astype(np.float32)})


def test_quotients_of_integers_and_the_edges_of_float32(tmp_path: Path) -> None:
    session = exported({**DIVIDED, **AT_EDGES}, torch.randn(2, 8, 1), tmp_path / "m.onnx")
    tenths = np.arange(-60, 60) / 10
    x = np.concatenate([tenths, 7 * tenths, 1000 * tenths, [1e10, -1e10]]).astype(np.float32)[None, :, None]
    y = session(x)
    for name, operation in DIVIDED.items():
        np.testing.assert_array_equal(y[name], operation(torch.from_numpy(x)), err_msg=name)
    x = np.array(EDGES, np.float32).reshape(1, -1, 1)
    y = session(x)
    for name, operation in AT_EDGES.items():
        least = 1e-6 if "add" in name else 1e-30
        np.testing.assert_allclose(
            y[name], operation(torch.from_numpy(x)), rtol=1e-5, atol=least, err_msg=name
        )


ROUNDED: dict[str, Callable[[Any], Any]] = {  # extents, as Python computes them
    "halves": lambda n: -(-n // 2),
    "down": lambda n: (n - 40) // 7 + 8,
    "third": lambda n: math.ceil(n / 3),
}


RESIZED: dict[str, dict[str, Any]] = {
    "to_a_size": {"size": (7, 5)},
    "one_extent": {"size": 14},
    "exact": {"size": (7, 5), "mode": "nearest-exact"},
    "twice": {"scale_factor": 2},
    "half": {"scale_factor": 0.5, "mode": "nearest-exact"},
    "by_a_ratio": {"scale_factor": 1.5, "recompute_scale_factor": True},
    "linear": {"size": (7, 5), "mode": "bilinear"},
    "linear_three_times": {"scale_factor": 3.0, "mode": "bilinear"},
    "a_third": {"scale_factor": (1 / 3, 2)},
    "an_exact_third": {"scale_factor": (1 / 3, 2), "mode": "nearest-exact"},
}


def transformed(y: Tensor) -> dict[str, Tensor]:
    """All of this for y (N, H, W, C)."""
    rounded = {name: y[:, : extent(y.shape[1])].sum(1) for name, extent in ROUNDED.items()}
    y = y.movedim(-1, 1)
    resized = {name: functional.interpolate(y, **options) for name, options in RESIZED.items()}
    pooled = nn.functional.adaptive_avg_pool2d(y, (1, None))
    steps = torch.linspace(-1, 2, y.shape[2])[:, None] + torch.linspace(0, 2, steps=y.shape[3])
    return {**rounded, **resized, "pooled": pooled, "steps": y + steps}


def test_extents_and_resized_images_are_those_of_torch_on_every_grid(tmp_path: Path) -> None:
    """torch's exporter rounds ⌊(n − 40) / 7⌋ towards 0."""
    net = Function(after=transformed)
    session = Session(export_onnx(net, tmp_path / "m.onnx", form="scan").path, "cpu")
    for extents in ((98, 8), (36, 75), (73, 65), (49, 98), (26, 102), (90, 30), (16, 50), (3, 4), (39, 5)):
        x = torch.rand(1, *extents, 1)
        expected = net(x)
        for name, y in session(x.numpy()).items():
            np.testing.assert_allclose(y, expected[name].detach(), rtol=0, atol=1e-5, err_msg=name)


REFUSED: dict[str, Operation] = {  # which a file has in float32
    "a share": lambda y: y[:, : math.floor(y.shape[1] * 0.7)],
    "half of a share": lambda y: y[:, : math.ceil((y.shape[1] - 0.1) / 2)],
    "resized by a share": lambda y: functional.interpolate(y.movedim(-1, 1), scale_factor=0.7),
    "by area": lambda y: functional.interpolate(y.movedim(-1, 1), size=9, mode="area"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_extents_that_a_file_rounds_otherwise_are_refused(name: str, tmp_path: Path) -> None:
    with pytest.raises(MDLSTMError):
        export_onnx(Function(after=REFUSED[name]), tmp_path / "m.onnx", form="scan")
