"""`export_onnx(…, example_inputs)`: what follows from them, and the errors that name an argument."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers.networks import CRNN, Conditioned, ConvStem, UNet, WindowedConv
from torch import nn

from mdlstm_tk import MDLSTM
from mdlstm_tk.errors import InputError
from mdlstm_tk.export import export_onnx, float64_reference
from mdlstm_tk.export.arguments import read_arguments
from mdlstm_tk.export.spec import ExportSpec
from mdlstm_tk.runtime import Session


def spec_of(
    module: nn.Module, examples: Any = None, *, any_grid: bool = False, **options: Any
) -> ExportSpec:
    """The inputs as `export_onnx` understands them, without an export."""
    given = {"grid": None, "channels": None, "channels_last": None, "padded": False, "extra_inputs": {}}
    given |= {"multiple_of": None, **options}
    return ExportSpec.from_module(module, read_arguments(module, examples, **given), any_grid)


@pytest.mark.parametrize(
    ("module", "x", "channels_last"),
    [
        (ConvStem(), torch.zeros(1, 3, 8, 12), False),
        (ConvStem(6), torch.zeros(1, 3, 8, 12), False),  # takes this grid only
        (UNet(), torch.zeros(3, 1, 4, 6), False),
        (CRNN(), torch.zeros(1, 1, 8, 8), False),
        (WindowedConv(), torch.zeros(2, 8, 8, 1), True),
        (MDLSTM(4, 3), torch.zeros(1, 4, 4, 4), True),
        (MDLSTM(4, 3, channels_last=False), torch.zeros(1, 4, 4, 4), False),
        (MDLSTM(2, 3, ndim=1), torch.zeros(1, 5, 2), True),
        (MDLSTM(2, 3, ndim=3), torch.zeros(1, 3, 4, 5, 2), True),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, nn.Module) else None,
)
def test_grid_channels_and_layout_follow_from_the_example(
    module: nn.Module, x: torch.Tensor, channels_last: bool
) -> None:
    spec = spec_of(module, x)
    grid = x.shape[1:-1] if channels_last else x.shape[2:]
    assert (spec.channels_last, spec.grid) == (channels_last, tuple(grid))
    assert spec.channels == x.shape[-1 if channels_last else 1]
    assert spec.ndim == len(grid)


def test_further_inputs_follow_from_the_example(tmp_path: Path) -> None:
    torch.manual_seed(0)
    net, x = Conditioned(), torch.randn(2, 3, 4, 2)
    z, k = torch.randn(2, 2), torch.tensor([3, 1], dtype=torch.int32)
    report = export_onnx(net, tmp_path / "m.onnx", (x, z, k))
    assert report.metadata.inputs == ("x", "z", "k")
    session = Session(report.path, "cpu")
    y = session(x.numpy(), z=z.numpy(), k=k.numpy())
    np.testing.assert_allclose(y, net(x, z, k).detach(), rtol=0, atol=1e-5)
    assert tuple(spec_of(net, (x, z)).examples((3, 4))) == ("x", "z")
    sizes = torch.tensor([[3, 4], [1, 2]])
    padded = spec_of(MDLSTM(2, 3), (x, sizes))
    assert padded.padded and tuple(padded.examples((3, 4))) == ("x", "sizes")


@pytest.mark.parametrize(
    ("module", "examples", "options", "named"),
    [
        (ConvStem(), None, {"grid": (8, 8)}, ["channels=", "example_inputs=", "3 channels"]),
        (ConvStem(), None, {"grid": (8, 8), "channels": 5}, ["channels=", "5 channels"]),
        (ConvStem(), None, {"grid": (8, 8), "channels": 3, "channels_last": True}, ["channels_last="]),
        (nn.Conv2d(3, 4, 1), None, {"grid": (8, 8)}, ["channels=", "example_inputs="]),
        (Conditioned(), None, {"grid": (3, 3)}, ["z", "example_inputs="]),
        (Conditioned(), (torch.zeros(1, 3, 3, 2), torch.zeros(1, 2)), {"channels": 3}, ["channels=3"]),
        (Conditioned(), (torch.zeros(1, 3, 3, 2), torch.zeros(1, 2)), {"grid": (4, 4)}, ["grid=(4, 4)"]),
        (MDLSTM(2, 3), torch.zeros(1, 3, 3, 2), {"channels_last": False, "channels": 2}, ["channels_last"]),
        (MDLSTM(2, 3), torch.zeros(3, 3), {}, ["example_inputs", "(3, 3)"]),
        (MDLSTM(2, 3), (), {}, ["example_inputs"]),
        (MDLSTM(2, 3), {"x": torch.zeros(1, 3, 3, 2)}, {}, ["example_inputs", "dict"]),
        (nn.Identity(), torch.zeros(1, 3, 3, 2), {}, ["channels_last="]),
        (MDLSTM(2, 3), None, {"extra_inputs": {"w": torch.zeros(1, 2)}}, ["'w'", "extra_inputs="]),
        (UNet(), None, {"grid": (5, 8), "channels": 1, "multiple_of": 2}, ["5x8", "multiple_of"]),
        (UNet(), torch.zeros(1, 1, 4, 6), {"multiple_of": (2, 2, 2)}, ["multiple_of"]),
        (UNet(), torch.zeros(1, 1, 4, 6), {"any_grid": True}, ["multiple_of=2"]),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, nn.Module) else None,
)
def test_an_error_names_the_argument(
    module: nn.Module, examples: Any, options: dict[str, Any], named: list[str]
) -> None:
    with pytest.raises(InputError) as raised:
        spec_of(module, examples, **options)
    message = str(raised.value)
    assert all(part in message for part in named), message
    assert "\n" not in message


def test_the_layout_that_runs_is_found_without_an_example() -> None:
    assert not spec_of(ConvStem(), grid=(8, 8), channels=3).channels_last
    assert spec_of(MDLSTM(2, 3), grid=(3, 3)).channels_last


def test_a_network_with_strides_takes_every_multiple(tmp_path: Path) -> None:
    torch.manual_seed(0)
    net = UNet()
    report = export_onnx(net, tmp_path / "m.onnx", form="scan", channels=1, multiple_of=2)
    session, reference = Session(report.path, "cpu"), float64_reference(net)
    assert (session.metadata.grid, session.metadata.multiple_of) == (None, (2, 2))
    for grid in ((2, 2), (6, 4), (10, 22)):
        x = np.random.default_rng(0).standard_normal((2, 1, *grid)).astype(np.float32)
        np.testing.assert_allclose(session(x), reference(x), rtol=0, atol=1e-5)
    with pytest.raises(InputError, match=r"5x8 .*multiples of 2x2.* 6x8"):
        session(np.zeros((5, 8)))
    many = session.run_many([np.zeros((4, 4)), np.zeros((2, 6))])
    assert [y.shape for y in many] == [(2, 4, 4), (2, 2, 6)]


def test_a_window_before_a_convolution_takes_any_size(tmp_path: Path) -> None:
    torch.manual_seed(0)
    net = WindowedConv()
    report = export_onnx(net, tmp_path / "m.onnx", form="scan")
    session, reference = Session(report.path, "cpu"), float64_reference(net)
    assert session.metadata.window is None  # the convolution without padding is no window
    for grid in ((5, 6), (9, 7), (20, 11)):
        x = np.random.default_rng(0).standard_normal((2, *grid, 1)).astype(np.float32)
        np.testing.assert_allclose(session(x), reference(x), rtol=0, atol=1e-5)


@pytest.mark.parametrize("grid", [(1, 7), (7, 1), (1, 1), (2, 1), (5,)], ids=str)
def test_functions_on_degenerate_grids(grid: tuple[int, ...], tmp_path: Path) -> None:
    layer = MDLSTM(2, 3, ndim=len(grid), directions="all")
    report = export_onnx(layer, tmp_path / "m.onnx", torch.zeros(2, *grid, 2), functions=True)
    assert report.max_abs < 1e-5
