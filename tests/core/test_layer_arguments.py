"""Integers, sizes and layouts of every kind that the layer takes, and messages about all others."""

from __future__ import annotations

import re
from typing import Any

import numpy as np
import pytest
import torch
from helpers.refusal import refused

from mdlstm_tk import MDLSTM, tiling

X = torch.randn(2, 4, 5, 3, generator=torch.Generator().manual_seed(0))
EXTENTS = [[4, 5], [2, 3]]


@pytest.mark.parametrize("one", [np.int64(1), np.uint8(1), torch.tensor(1)], ids=str)
def test_integers_of_numpy_and_torch_are_integers(one: Any) -> None:
    layer = MDLSTM(3 * one, 4 * one, ndim=2 * one, num_layers=one, directions=one, window=one)
    assert repr(layer) == repr(MDLSTM(3, 4))
    assert repr(MDLSTM(3, 4, window=np.array([2, 1]))) == repr(MDLSTM(3, 4, window=(2, 1)))
    assert layer(X).shape == (2, 4, 5, 4)
    flags: Any = {"bias": one - 1, "recompute": np.bool_(True), "layer_norm": torch.tensor(False)}
    assert repr(MDLSTM(3, 4, **flags)) == "MDLSTM(3, 4, bias=False, recompute=True)"


def test_directions_may_be_an_array_or_lists() -> None:
    for directions in (np.array([[1, -1], [-1, 1]]), [[1, -1], [-1, 1]], [(1, -1), (-1, 1)]):
        assert MDLSTM(3, 4, directions=directions).directions == [(1, -1), (-1, 1)]


UNORDERED: list[Any] = [{(1, 1), (1, -1)}, {(1, 1): 2}, True, [(True, 1)], [{1: 1, -1: 1}]]
BAD_ARGUMENTS: list[tuple[dict[str, Any], str]] = [
    ({"input_size": 0}, "input_size .*got 0"),
    ({"hidden_size": 2.5}, "hidden_size .*got 2.5"),
    ({"hidden_size": True}, "hidden_size .*got True"),
    ({"ndim": 0}, "ndim must be"),
    ({"num_layers": None}, "num_layers must be .*got None"),
    ({"window": (2, 2, 2)}, "window must be one extent, or 2"),
    ({"window": torch.tensor(2.0)}, "window must be .*tensor"),
    ({"window": np.array([2, 0])}, "window must be .*0"),
    *(
        ({"window": value}, f"window must be .*got {value}")
        for value in ({2: 1, 3: 1}, {2, 3}, b"ab", True)
    ),
    *(({"directions": value}, f"directions must .*got {re.escape(str(value))}") for value in UNORDERED),
    ({"directions": 4}, "directions must be 1, 'all' or .*got 4"),
    ({"merge": "max"}, "merge must be one of concat, sum, mean, got 'max'"),
    ({"merge": np.array(["sum", "mean"])}, "merge must be one of .*array"),
    ({"dropout": 1.5}, "dropout must be a probability"),
    ({"dropout": None}, "dropout must be a probability.*None"),
    *(({"dropout": p}, f"dropout must be a probability.*{p}") for p in ("often", "0.5", b"0.5", True)),
    ({"dropout": torch.zeros(2)}, "dropout must be a probability.*tensor"),
    ({"dropout": 10**400}, "dropout must be a probability"),
    ({"cell": None}, "cell must be a text, got None"),
    ({"peephole": True, "cell": "stable"}, "such as 'graves', got the cell 'stable'"),
    ({"layer_norm": True, "bias": False}, "needs bias=True"),
    ({"backend": "cudnn"}, "backend must be one of"),
    *(
        ({flag: value}, f"{flag} must be True or False, got {value!r}")
        for flag in ("layer_norm", "peephole", "bias", "channels_last", "recompute")
        for value in ("False", None, 2)
    ),
    ({"dtype": torch.int64}, "dtype must be .*got torch.int64"),
    ({"device": "foo"}, "device must be .*got 'foo' .*Expected one of"),
    ({"device": 1.5}, "device must be .*got 1.5"),
]


@pytest.mark.parametrize(("arguments", "message"), BAD_ARGUMENTS, ids=[m for _, m in BAD_ARGUMENTS])
def test_bad_arguments_are_named(arguments: dict[str, Any], message: str) -> None:
    refused(message, lambda: MDLSTM(**{"input_size": 1, "hidden_size": 2, **arguments}))


KINDS = {
    "a list of tensors": [torch.tensor(each) for each in EXTENTS],
    "int32": torch.tensor(EXTENTS, dtype=torch.int32),
    "lists": EXTENTS,
    "NumPy": np.array(EXTENTS),
    "big-endian": np.array(EXTENTS, dtype=">i8"),
    "uint16": np.array(EXTENTS, dtype=np.uint16),
    "read-only": np.broadcast_to(np.array(EXTENTS), (2, 2)),
    "reversed": np.array([extents[::-1] for extents in EXTENTS])[:, ::-1],  # (width, height) of pictures
    "no masked entry": np.ma.masked_array(EXTENTS),
}


@pytest.mark.filterwarnings("ignore:.*torch.tensor.*:UserWarning")
@pytest.mark.parametrize("kind", KINDS)
def test_sizes_may_be_integers_of_any_kind(kind: str) -> None:
    layer = MDLSTM(3, 4)
    expected = layer(X, torch.tensor(EXTENTS))
    assert torch.equal(layer(X, KINDS[kind]), expected)
    if kind in ("int32", "lists", "NumPy"):
        compiled = torch.compile(layer, fullgraph=True, backend="eager")
        assert torch.equal(compiled(X, KINDS[kind]), expected)


def test_sizes_may_be_on_another_device() -> None:
    layer = MDLSTM(3, 4, device="meta")
    assert layer(X.to("meta"), torch.tensor(EXTENTS)).shape == (2, 4, 5, 4)
    with torch.device("meta"):
        assert MDLSTM(3, 4, device="cpu")(X, EXTENTS).shape == (2, 4, 5, 4)


MASKED = np.ma.masked_array(EXTENTS, mask=[[False, True], [False, False]])
BAD_SIZES: list[tuple[Any, str]] = [
    ([[4, 5]], r"\(N, D\) = \(2, 2\), got int64 of shape \(1, 2\)"),
    (torch.ones(2, 2), r"\(2, 2\), got float32"),
    ([[True, True], [True, False]], "got bool"),
    ("4x5", "got '4x5'"),
    ([[4, None], [2, 3]], "got .*None"),
    ([[2**70, 5], [2, 3]], "got .*1180591620717411303424"),
    ([[4, 5], [2]], r"got \[\[4, 5\], \[2\]\]"),
    ([[4, 5], [2, 6]], r"extents of the grid \(4, 5\), got \[2, 6\] for sample 1"),
    (torch.tensor([[4, 5], [0, 3]]), "got .*0, 3"),
    *((sizes, "masked values") for sizes in (MASKED, [*MASKED], [[4, np.ma.masked], [2, 3]])),
]


@pytest.mark.parametrize(("sizes", "message"), BAD_SIZES, ids=[m for _, m in BAD_SIZES])
def test_bad_sizes_are_named(sizes: Any, message: str) -> None:
    refused(f"sizes (must|has) .*{message}", lambda: MDLSTM(3, 4)(X, sizes))


@pytest.mark.parametrize("channels_last", [True, False])
@pytest.mark.parametrize(
    ("grid", "extents"), [((5, 6), None), ((5,), [3]), ((5, 6), [3, 4]), ((2, 3, 4), [2, 3, 3])], ids=str
)
def test_a_sample_without_batch_axis(
    grid: tuple[int, ...], extents: list[int] | None, channels_last: bool
) -> None:
    options: Any = {"num_layers": 2, "directions": "all", "window": 2, "channels_last": channels_last}
    layer, windows = MDLSTM(3, 4, ndim=len(grid), **options), [-(-extent // 2) for extent in grid]
    x = torch.randn(*grid, 3) if channels_last else torch.randn(3, *grid)
    y, features = layer(x, extents), layer.output_size
    assert list(y.shape) == ([*windows, features] if channels_last else [features, *windows])
    assert torch.equal(y, layer(x[None], None if extents is None else [extents])[0])
    if extents is not None:
        refused(r"sizes must be .*\(D,\) = ", lambda: layer(x, [extents]))


BAD_INPUTS: list[tuple[Any, str]] = [
    (np.zeros((2, 3, 3, 3)), "torch.Tensor, got ndarray"),
    (torch.zeros(2, 2, 3, 3, 3), r"\(N, E1, E2, C\).* C = 3, got shape \(2, 2, 3, 3, 3\)"),
    (torch.zeros(2, 5, 5, 4), r"with C = 3, got shape \(2, 5, 5, 4\)$"),
    (torch.zeros(2, 3, 3, 3, dtype=torch.double), "dtype torch.float32, got torch.float64"),
    (torch.zeros(2, 3, 3, 3, device="meta"), "device cpu, got meta; use x.to"),
]


@pytest.mark.parametrize(("x", "message"), BAD_INPUTS, ids=[m for _, m in BAD_INPUTS])
def test_bad_inputs_are_named(x: Any, message: str) -> None:
    refused(f"x must .*{message}", lambda: MDLSTM(3, 2)(x))


@pytest.mark.filterwarnings("ignore:Complex modules:UserWarning")
def test_what_else_a_call_cannot_take_is_named() -> None:
    layer: Any = MDLSTM(3, 2)
    refused("x must be a torch.Tensor, got ndarray", lambda: layer.backend_for(X.numpy()))
    refused("return_state must be True or False, got 'no'", lambda: layer(X, return_state="no"))
    refused("training must be True or False, got 'no'", lambda: layer.precompile("no"))
    refused("to_empty", lambda: MDLSTM(3, 4, device="meta")(X))
    refused("dtype must be .*complex64", lambda: layer.to(torch.complex64)(X.to(torch.complex64)))


@pytest.mark.parametrize("batch", [(), (2,)], ids=["one sample", "batch"])
def test_other_layouts_get_a_hint(batch: tuple[int, ...]) -> None:
    last, first = MDLSTM(3, 2), MDLSTM(3, 2, channels_last=False)
    refused("channels_last=False", lambda: last(torch.zeros(*batch, 3, 8, 9)))
    refused("channels_last=True", lambda: first(torch.zeros(*batch, 8, 9, 3)))
    last, first = MDLSTM(1, 2), MDLSTM(1, 2, channels_last=False)
    refused(r"x.unsqueeze\(-1\)", lambda: last(torch.zeros(*batch, 8, 9)))
    refused(r"x.unsqueeze\(-3\)", lambda: first(torch.zeros(*batch, 8, 9)))


def test_the_reference_makes_no_tensor_on_the_default_device() -> None:
    layer = MDLSTM(3, 4, device="cpu", backend="reference")
    with torch.device("meta"):
        y, _ = layer(X, return_state=True)
    assert y.device == torch.device("cpu")


@pytest.mark.parametrize("name", ["x", "weight_hh"])
def test_a_tensor_whose_memory_was_freed_is_named(name: str) -> None:
    layer, x = MDLSTM(3, 4, backend="fused"), X.clone()
    {"x": x, "weight_hh": layer.weight_hh_l0}[name].untyped_storage().resize_(0)
    refused(f"{name} has no memory any more", lambda: layer(x))


def test_a_merge_that_is_set_later_is_checked() -> None:
    layer = MDLSTM(3, 4, directions="all", merge="sum")
    layer.merge = "max"  # type: ignore[assignment]
    for call in (MDLSTM.__call__, tiling.checkpointed):
        refused("merge must be one of concat, sum, mean, got 'max'", lambda call=call: call(layer, X))


@pytest.mark.parametrize("name", ["bias", "peephole", "weight_ih", "norm_bias"])
def test_a_parameter_may_be_a_buffer(name: str) -> None:
    layer = MDLSTM(3, 4, peephole=True, layer_norm=True)
    for parameter in (layer.bias_l0, layer.peephole_l0):
        torch.nn.init.normal_(parameter)
    expected, value = layer(X), getattr(layer, f"{name}_l0").detach().clone()
    delattr(layer, f"{name}_l0")
    layer.register_buffer(f"{name}_l0", value)
    torch.testing.assert_close(layer(X), expected, rtol=0, atol=0)


def test_a_nested_tensor_is_refused_with_a_remedy_that_works() -> None:
    nested = torch.nested.nested_tensor([torch.rand(4, 5, 3), torch.rand(2, 3, 3)])
    layer = MDLSTM(3, 4)
    refused(r"with torch\.nested\.to_padded_tensor\(x, 0\.0\), and give sizes", lambda: layer(nested))
    y = layer(torch.nested.to_padded_tensor(nested, 0.0), sizes=[(4, 5), (2, 3)])
    torch.testing.assert_close(y[1, :2, :3], layer(nested[1]))
