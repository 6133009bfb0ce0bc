"""What cannot be exported is refused in one line, and no file appears."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.networks import Conditioned, ConvStem, FoldedHeight, Function, UNet
from torch import Tensor, nn

from mdlstm_tk import MDLSTM
from mdlstm_tk.errors import InputError, MDLSTMError, ParityError
from mdlstm_tk.export import export_onnx


class Sized(Function):
    """A layer with the sizes of padded samples."""

    def forward(self, x: Tensor, sizes: Tensor) -> Tensor:  # type: ignore[override]
        return self.after(self.layer(x, sizes))  # type: ignore[no-any-return]


class TwoGrids(Function):
    """Two images of one size."""

    def forward(self, x: Tensor, z: Tensor) -> Tensor:  # type: ignore[override]
        return self.layer(x) + self.layer(z)  # type: ignore[no-any-return]


def after(function: Callable[[Tensor], Any]) -> nn.Module:
    return Function(after=function)


X, G, SCAN = torch.rand(1, 4, 6, 1), {"grid": (3, 4)}, {"form": "scan"}
PADDED = {"example_inputs": torch.rand(2, 5, 5, 1), "padded": True, **SCAN}
PAIR = {"example_inputs": (X, X), **SCAN}
BY_DTYPE: Callable[[Tensor], Tensor] = lambda y: 2 * y if y.dtype == torch.float64 else y  # noqa: E731
CLASSES = {**G, "metadata": {"kind": "classify"}}
REFUSED: dict[str, tuple[type[MDLSTMError], Callable[[], nn.Module], dict[str, Any]]] = {
    "a kind without classes": (InputError, lambda: after(lambda y: y.mean((1, 2))), CLASSES),
    "a kind of other outputs": (InputError, Function, CLASSES),
    "complex numbers": (InputError, lambda: after(torch.fft.fft), G),
    "no batch": (InputError, lambda: after(lambda y: y[0]), G),
    "one sample alone": (InputError, lambda: after(lambda y: y[:1]), G),
    "NaN": (InputError, lambda: Function(torch.log), G),
    "a mean of the batch": (InputError, lambda: after(lambda y: 1e-8 * (y - y.mean(0))), G),
    "those before": (InputError, lambda: after(lambda y: y.cumsum(0)), G),
    "random": (InputError, lambda: Function(lambda x: x + torch.rand_like(x)), G),
    "padding, flattened": (InputError, lambda: Sized(after=lambda y: y.flatten(1, 2)), PADDED),
    "padding, read": (ParityError, lambda: Sized(after=lambda y: y - y.mean((1, 2), True)), PADDED),
    "a grid beside x": (InputError, TwoGrids, PAIR),
    "another grid": (InputError, TwoGrids, {"example_inputs": (X, X[:, 1:]), "grid_inputs": ["z"], **SCAN}),
    "no channels": (InputError, ConvStem, {"grid": (8, 8)}),
    "a missing input": (InputError, Conditioned, G),
    "no grid": (InputError, Function, {}),
    "no multiple": (InputError, UNet, {"grid": (5, 8), "channels": 1, "multiple_of": 2}),
    "strides": (InputError, UNet, {"example_inputs": torch.zeros(1, 1, 4, 6), **SCAN}),
    "a fixed height": (InputError, FoldedHeight, {**SCAN, "channels_last": False}),
    "a grid of tiles": (InputError, lambda: MDLSTM(1, 2), {**G, "form": "tiles"}),
    "an operator": (MDLSTMError, lambda: Function(torch.special.bessel_j0), G),
    "a decision by a dtype": (ParityError, lambda: after(BY_DTYPE), G),
}


@pytest.mark.parametrize("name", REFUSED)
def test_it_is_refused_in_one_line_and_leaves_no_file(name: str, tmp_path: Path) -> None:
    kind, make, options = REFUSED[name]
    torch.manual_seed(0)
    with pytest.raises(kind) as raised:
        export_onnx(make(), tmp_path / ("m.tiles" if "tiles" in name else "m.onnx"), **options)
    assert "\n" not in str(raised.value) and not list(tmp_path.iterdir())


def test_a_path_that_no_file_can_have(tmp_path: Path) -> None:
    (tmp_path / "m.onnx").write_text("old")
    with pytest.raises(InputError, match="exists"):
        export_onnx(Function(), tmp_path / "m.onnx", **G, replace=False)
    for path in (tmp_path, tmp_path / "mistyped/m.onnx", tmp_path / "m.tiles"):
        with pytest.raises(InputError):
            export_onnx(Function(), path, **G)
    assert (tmp_path / "m.onnx").read_text() == "old" and len(list(tmp_path.iterdir())) == 1
