"""The inputs and outputs of a network, from the arguments of an export and from the network itself."""

from __future__ import annotations

from collections import namedtuple
from typing import Any

import numpy as np
import pytest
import torch
from helpers.networks import Conditioned, ConvStem, FoldedHeight, Function, Tokens, UNet, WindowedConv
from torch import Tensor, nn

from mdlstm_tk import MDLSTM
from mdlstm_tk.errors import InputError
from mdlstm_tk.export.arguments import read_spec
from mdlstm_tk.export.interface import named_outputs

Pair = namedtuple("Pair", ["first", "second"])
T = torch.zeros(2, 3)


@pytest.mark.parametrize(
    ("module", "x", "channels_last"),
    [
        (ConvStem(), torch.zeros(1, 3, 8, 12), False),
        (FoldedHeight(), torch.zeros(1, 1, 8, 9), False),
        (WindowedConv(), torch.zeros(2, 8, 8, 1), True),
        (MDLSTM(4, 3), torch.zeros(1, 4, 4, 4), True),
        (MDLSTM(4, 3, channels_last=False), torch.zeros(1, 4, 4, 4), False),
        (MDLSTM(2, 3, ndim=1), torch.zeros(1, 5, 2), True),
        (MDLSTM(2, 3, ndim=3), torch.zeros(1, 3, 4, 5, 2), True),
    ],
)
def test_grid_channels_and_layout_follow_from_the_example(
    module: nn.Module, x: Tensor, channels_last: bool
) -> None:
    spec = read_spec(module, x)
    grid = x.shape[1:-1] if channels_last else x.shape[2:]
    assert (spec.channels_last, spec.grid, spec.ndim) == (channels_last, tuple(grid), len(grid))
    assert spec.channels == x.shape[-1 if channels_last else 1]


@pytest.mark.parametrize(
    ("module", "examples", "options", "grid"),
    [
        (MDLSTM(1, 2), None, {}, (None, None)),
        (MDLSTM(1, 2), torch.zeros(1, 4, 5, 1), {}, (None, None)),
        (MDLSTM(1, 2), None, {"grid": (4, 5)}, (None, None)),
        (MDLSTM(1, 2), None, {"grid": (4, None)}, (4, None)),
        (UNet(), torch.zeros(1, 1, 4, 6), {"multiple_of": 2}, (None, None)),
        (FoldedHeight(), torch.zeros(1, 1, 8, 12), {"grid": (8, None)}, (8, None)),
        (FoldedHeight(), torch.zeros(1, 1, 8, 12), {}, (8, None)),  # the network takes no other height
        (ConvStem(6), None, {"grid": (8, 12), "channels": 3, "channels_last": False}, (8, 12)),
    ],
)
def test_extents_for_any_size(module: nn.Module, examples: Any, options: Any, grid: Any) -> None:
    spec = read_spec(module, examples, any_size=True, **options)
    assert spec.grid == grid
    assert all(
        extent in (None, actual) for size in spec.shapes for extent, actual in zip(grid, size, strict=True)
    )


@pytest.mark.parametrize(
    ("module", "options", "least"),
    [
        (Function(), {}, None),
        (Function(after=lambda y: nn.functional.pad(y, (0, 0, 3, 3, 1, 1), "reflect")), {}, (2, 4)),
        (WindowedConv(), {}, (5, 5)),
        (WindowedConv(), {"grid": (6, None)}, (6, 5)),
        (WindowedConv(), {"multiple_of": 2}, (6, 6)),
        (UNet(), {"channels": 1, "multiple_of": 2}, None),
    ],
)
def test_the_smallest_extents_that_a_network_takes(module: nn.Module, options: Any, least: Any) -> None:
    spec = read_spec(module, any_size=True, **options)
    assert spec.metadata("scan", "float32", {}).min_grid == least


class Several(nn.Module):
    def forward(self, x: Tensor, *others: Tensor) -> Tensor:
        return x + sum(other.sum() for other in others)


def conditioned(*shapes: tuple[int, ...]) -> tuple[Tensor, ...]:
    return tuple(torch.zeros(shape) for shape in shapes)


@pytest.mark.parametrize(
    ("module", "examples", "options", "parts"),
    [
        (ConvStem(), None, {"grid": (8, 8)}, ["channels=", "example_inputs=", "3 channels"]),
        (nn.Conv2d(3, 4, 1), None, {"grid": (8, 8)}, ["channels=", "example_inputs="]),
        (Conditioned(), None, {"grid": (3, 3)}, ["z", "example_inputs="]),
        (Conditioned(), conditioned((1, 3, 3, 2), (1, 2)), {"channels": 3}, ["channels=3"]),
        (Conditioned(), conditioned((1, 3, 3, 2), (1, 2)), {"grid": (4, 4)}, ["grid=(4, 4)"]),
        (MDLSTM(2, 3), torch.zeros(3), {}, ["example_inputs", "(3,)"]),
        (MDLSTM(2, 3), torch.zeros(1, 3, 3, 2).bool(), {}, ["'x'", "torch.bool"]),
        (MDLSTM(2, 3), torch.zeros(0, 3, 3, 2), {}, ["'x'", "(0, 3, 3, 2)"]),
        (Conditioned(), None, {"extra_inputs": {"z": torch.tensor(0.5)}}, ["'z'", "shape ()"]),
        (nn.Identity(), torch.zeros(1, 3, 3, 2), {}, ["channels_last="]),
        (MDLSTM(2, 3), None, {"extra_inputs": {"w": torch.zeros(1, 2)}}, ["'w'", "extra_inputs="]),
        (MDLSTM(2, 3), None, {}, ["grid=...", 'form="scan"']),
        (MDLSTM(2, 3), None, {"grid": (3, None)}, ["grid=(3, None)", 'form="scan"']),
        (UNet(), None, {"grid": (5, 8), "channels": 1, "multiple_of": 2}, ["5x8", "multiple_of"]),
        (UNet(), torch.zeros(1, 1, 4, 6), {"any_size": True}, ["multiple_of=2"]),
        (ConvStem(6), torch.zeros(1, 3, 8, 12), {"any_size": True}, ["8x12 only", "grid=(8, 12)"]),
        (FoldedHeight(), None, {"any_size": True, "channels_last": False}, ["grid=(48, None)"]),
        (Conditioned(), conditioned((1, 3, 3, 2), (1, 2)), {"grid_inputs": ["w"]}, ["'w'", "grid_inputs"]),
        (Conditioned(), conditioned((1, 3, 3, 2), (1, 2)), {"grid_inputs": ["z"]}, ["'z'", "grid_inputs"]),
        (Function(), conditioned((1, 3, 3, 1), (1, 2)), {}, ["Function.forward takes x by position"]),
        (Several(), conditioned((1, 3, 3, 1), (1, 2)), {}, ["each input of *others", "name"]),
        (Function(), None, {"extra_inputs": {"x": torch.zeros(1)}}, ["first input x", "example_inputs="]),
        (Tokens(-1), torch.zeros(1, 3, 3, 1), {}, ["index out of range", "example_range=(0, entries - 1)"]),
    ],
)
def test_an_error_names_the_argument(
    module: nn.Module, examples: Any, options: dict[str, Any], parts: list[str]
) -> None:
    with pytest.raises(InputError) as raised:
        read_spec(module, examples, **options)
    assert all(part in str(raised.value) for part in parts)


@pytest.mark.parametrize(
    ("x", "options", "lowest", "highest", "whole"),
    [
        (None, {"grid": (9, 9)}, -9, 9, False),
        (torch.zeros(1, 9, 9, 1), {}, -9, 9, False),  # all values are equal, so they tell nothing
        (torch.tensor([0.25, 0.5]).repeat(1, 9, 8, 1)[..., :1], {}, -9, 9, False),
        (torch.linspace(2, 3, 81).view(1, 9, 9, 1), {}, 2, 3, False),
        (torch.zeros(1, 9, 9, 1), {"example_range": (5, 6)}, 5, 6, False),
        (None, {"grid": (9, 9), "example_range": lambda shape, _: torch.full(shape, 7.0)}, 7, 7, True),
        (torch.arange(81).view(1, 9, 9) % 5, {}, 0, 4, True),
        (torch.zeros(1, 9, 9, dtype=torch.long), {}, 0, 6, True),  # the table has 7 rows
        (torch.zeros(1, 9, 9, dtype=torch.long), {"example_range": (3, 4)}, 3, 4, True),
    ],
)
def test_random_inputs_stay_in_the_range(
    x: Tensor | None, options: dict[str, Any], lowest: float, highest: float, whole: bool
) -> None:
    network = Tokens(0) if x is not None and not x.is_floating_point() else MDLSTM(1, 2)
    values = read_spec(network, x, **options).inputs((9, 9), 4)["x"]
    assert values.dtype == np.float32 and values.shape == (4, 9, 9, 1)
    assert lowest <= values.min() and values.max() <= highest
    assert (values == np.round(values)).all() == whole


def test_names_of_outputs() -> None:
    assert list(named_outputs(T, "Net")) == ["y"]
    assert list(named_outputs((T, T), "Net")) == ["y", "y1"]
    assert list(named_outputs({"out": T, "aux": T}, "Net")) == ["out", "aux"]
    assert list(named_outputs(Pair(T, T), "Net")) == ["first", "second"]


def test_other_results_are_refused() -> None:
    for result, names, message in (
        ((T, (T, T)), None, "tuple as output 'y1'"),
        ({"y": None}, None, "NoneType as output 'y'"),
        ({}, None, "no output"),
        ((T, T), ["a"], "output_names has 1"),
        ((T, T), ["a", "a"], "different names"),
    ):
        with pytest.raises(InputError, match=message):
            named_outputs(result, "Net", names)


@pytest.mark.parametrize("padded", [False, True])
def test_padded_samples_follow_from_an_example_of_sizes(padded: bool) -> None:
    spec = read_spec(MDLSTM(2, 3), (torch.zeros(1, 3, 4, 2), torch.tensor([[3, 4]])), padded=padded)
    assert spec.interface.names == ["sizes"] and spec.extra_inputs == {}
    assert spec.padded and tuple(spec.examples((3, 4))) == ("x", "sizes")


@pytest.mark.parametrize("grid", [np.array([3, 4]), torch.tensor([3, 4]), [np.int64(3), np.int64(4)]])
def test_numbers_of_numpy_and_torch_are_numbers(grid: Any) -> None:
    spec = read_spec(MDLSTM(np.int64(1), 2), grid=grid, channels=np.int64(1), multiple_of=np.int64(1))
    assert (spec.grid, spec.channels, spec.multiple_of) == ((3, 4), 1, (1, 1))
    assert all(type(extent) is int for extent in (*spec.grid, spec.channels))
