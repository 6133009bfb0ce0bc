"""What cannot be exported is refused in one line, and no file appears."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers.networks import Conditioned, ConvStem, FoldedHeight, Function, TwoGrids, UNet
from torch import Tensor, nn

from mdlstm_tk import MDLSTM
from mdlstm_tk.errors import InputError, MDLSTMError, ParityError
from mdlstm_tk.export import export_onnx
from mdlstm_tk.runtime import Session


class Sized(Function):
    """A layer with the sizes of padded samples."""

    def forward(self, x: Tensor, sizes: Tensor) -> Tensor:  # type: ignore[override]
        y = self.layer(x, sizes)
        return y if self.after is None else self.after(y)


def after(function: Callable[[Tensor], Any]) -> nn.Module:
    return Function(after=function)


X, G, SCAN = torch.rand(1, 4, 6, 1), {"grid": (3, 4)}, {"form": "scan"}
PADDED = {"example_inputs": torch.rand(2, 5, 5, 1), "padded": True}
NEGATIVE = {"example_inputs": torch.zeros(1, 3, 4, 1) - 1, "example_range": (1, 2)}
GRIDS = {"example_inputs": (X, torch.rand(1, 4, 5, 3)), **SCAN, "grid_inputs": ["z"]}
BY_DTYPE: Callable[[Tensor], Tensor] = lambda y: 2 * y if y.dtype == torch.float64 else y  # noqa: E731
ROUNDED: Callable[[Tensor], Tensor] = lambda y: (y + 1e5) - 1e5  # noqa: E731
REFUSED: dict[str, tuple[type[MDLSTMError], Callable[[], nn.Module], dict[str, Any]]] = {
    "a kind without classes": (
        InputError,
        lambda: after(lambda y: y.mean((1, 2))),
        {**G, "metadata": {"kind": "classify"}},
    ),
    "a kind that is none": (InputError, Function, {**G, "metadata": {"kind": "clasify"}}),
    "an output called x": (MDLSTMError, lambda: after(lambda y: {"x": y}), G),
    "no output": (InputError, lambda: after(lambda y: None), SCAN),
    "complex numbers": (InputError, lambda: after(torch.fft.fft), G),
    "no batch": (InputError, lambda: after(lambda y: y[0]), G),
    "NaN": (InputError, lambda: Function(torch.log), G),
    "NaN on the example": (InputError, lambda: Function(torch.log), NEGATIVE),
    "a mean of the batch": (InputError, lambda: after(lambda y: 1e-8 * (y - y.mean(0))), G),
    "those before": (InputError, lambda: after(lambda y: y.cumsum(0)), G),
    "random": (InputError, lambda: Function(lambda x: x + torch.rand_like(x)), G),
    "padding, flattened": (InputError, lambda: Sized(after=lambda y: y.flatten(1, 2)), {**PADDED, **SCAN}),
    "another grid": (InputError, TwoGrids, GRIDS),
    "no channels": (InputError, ConvStem, {"grid": (8, 8)}),
    "a missing input": (InputError, Conditioned, G),
    "no grid": (InputError, Function, {}),
    "no multiple": (InputError, UNet, {"grid": (5, 8), "channels": 1, "multiple_of": 2}),
    "a grid of tiles": (InputError, lambda: MDLSTM(1, 2), {**G, "form": "tiles"}),
    "strides": (InputError, UNet, {"example_inputs": torch.zeros(1, 1, 4, 6), **SCAN}),
    "a fixed height": (InputError, FoldedHeight, {**SCAN, "channels_last": False}),
    "one sample": (InputError, lambda: MDLSTM(3, 4), {"example_inputs": torch.rand(5, 6, 3)}),
    "an operator": (MDLSTMError, lambda: Function(torch.special.bessel_j0), G),
    "a decision by a dtype": (ParityError, lambda: after(BY_DTYPE), G),
    "more than float32": (ParityError, lambda: after(ROUNDED), G),
}


@pytest.mark.parametrize("name", REFUSED)
def test_it_is_refused_in_one_line_and_leaves_no_file(name: str, tmp_path: Path) -> None:
    kind, make, options = REFUSED[name]
    torch.manual_seed(0)
    with pytest.raises(kind) as raised:
        export_onnx(make(), tmp_path / ("m.tiles" if "tiles" in name else "m.onnx"), **options)
    assert "\n" not in str(raised.value) and not list(tmp_path.iterdir())


def test_an_existing_file_stays_on_a_failure(tmp_path: Path) -> None:
    (tmp_path / "m.onnx").write_text("old")
    with pytest.raises(ParityError):
        export_onnx(after(ROUNDED), tmp_path / "m.onnx", **G)
    with pytest.raises(InputError, match="exists"):
        export_onnx(Function(), tmp_path / "m.onnx", **G, replace=False)
    assert (tmp_path / "m.onnx").read_text() == "old"
    for path in (tmp_path, tmp_path / "mistyped/m.onnx", tmp_path / "m.tiles"):
        with pytest.raises(InputError):
            export_onnx(Function(), path, **G)


def test_boolean_further_inputs_are_taken(tmp_path: Path) -> None:
    class Masked(Function):
        def forward(self, x: Tensor, mask: Tensor) -> Tensor:  # type: ignore[override]
            y: Tensor = self.layer(x)
            return torch.where(mask[..., None], y, 0)

    net, mask = Masked(), torch.rand(1, 4, 6) > 0.5
    report = export_onnx(net, tmp_path / "m.onnx", (X, mask), form="scan", grid_inputs=["mask"])
    x, other = torch.rand(2, 20, 9, 1), torch.rand(2, 20, 9) > 0.3
    y = Session(report.path, "cpu")(x.numpy(), mask=other.numpy())
    np.testing.assert_allclose(y, net(x, other).detach(), atol=1e-5)
