"""Integers, sizes and layouts of every kind that the layer takes, and messages about all others."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from mdlstm_tk import MDLSTM
from mdlstm_tk.errors import InputError

X = torch.randn(2, 4, 5, 3, generator=torch.Generator().manual_seed(0))
EXTENTS = [[4, 5], [2, 3]]


@pytest.mark.parametrize("one", [np.int64(1), np.int32(1), np.uint8(1), torch.tensor(1)], ids=str)
def test_integers_of_numpy_and_torch_are_integers(one: Any) -> None:
    layer = MDLSTM(3 * one, 4 * one, ndim=2 * one, num_layers=one, directions=one, window=one)
    assert repr(layer) == repr(MDLSTM(3, 4))
    assert repr(MDLSTM(3, 4, window=np.array([2, 1]))) == repr(MDLSTM(3, 4, window=(2, 1)))
    assert layer(X).shape == (2, 4, 5, 4)


def test_directions_may_be_an_array_or_lists() -> None:
    for directions in (np.array([[1, -1], [-1, 1]]), [[1, -1], [-1, 1]], [(1, -1), (-1, 1)]):
        assert MDLSTM(3, 4, directions=directions).directions == [(1, -1), (-1, 1)]


BAD_ARGUMENTS = {
    "input_size": ({"input_size": 0}, "input_size .*got 0"),
    "input_size of a matrix": ({"input_size": torch.zeros(3, 3)}, "input_size .*got tensor"),
    "hidden_size": ({"hidden_size": 2.5}, "hidden_size .*got 2.5"),
    "ndim": ({"ndim": 0}, "ndim must be"),
    "num_layers": ({"num_layers": None}, "num_layers must be .*got None"),
    "window": ({"window": (2, 2, 2)}, "window must be one extent, or 2"),
    "window of text": ({"window": "2x2"}, "window must be one extent, or 2"),
    "no window": ({"window": None}, "window must be .*got None"),
    "window of a float tensor": ({"window": torch.tensor(2.0)}, "window must be .*tensor"),
    "window of a float array": ({"window": np.array(2.0)}, "window must be .*array"),
    "window below 1": ({"window": np.array([2, 0])}, "window must be .*0"),
    "directions": ({"directions": 4}, "directions must be 1, 'all' or .*got 4"),
    "merge": ({"merge": "max"}, "merge must be one of concat, sum, mean, got 'max'"),
    "merges": ({"merge": np.array(["sum", "mean"])}, "merge must be one of .*array"),
    "dropout": ({"dropout": 1.5}, "dropout must be a probability"),
    "dropout of text": ({"dropout": "often"}, "dropout must be a probability.*often"),
    "two dropouts": ({"dropout": torch.zeros(2)}, "dropout must be a probability.*tensor"),
    "huge dropout": ({"dropout": 10**400}, "dropout must be a probability"),
    "cell": ({"cell": None}, "cell must be a name, got None"),
    "peephole": ({"peephole": True, "cell": "stable"}, "such as 'graves', got cell='stable'"),
    "norm without bias": ({"layer_norm": True, "bias": False}, "needs bias=True"),
    "backend": ({"backend": "cudnn"}, "backend must be one of"),
    "dtype": ({"dtype": torch.int64}, "dtype must be .*got torch.int64"),
    "complex dtype": ({"dtype": torch.complex64}, "dtype must be .*got torch.complex64"),
    "name of a dtype": ({"dtype": "float32"}, "dtype must be .*got 'float32'"),
}


def refused(message: str, call: Any) -> None:
    """Check that a call raises an `InputError` of one line that matches `message`."""
    with pytest.raises(InputError, match=message) as caught:
        call()
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("case", BAD_ARGUMENTS)
def test_bad_arguments_are_named(case: str) -> None:
    arguments, message = BAD_ARGUMENTS[case]
    refused(message, lambda: MDLSTM(**{"input_size": 1, "hidden_size": 2, **arguments}))


KINDS = {
    "int64": torch.tensor(EXTENTS),
    "int32": torch.tensor(EXTENTS, dtype=torch.int32),
    "uint8": torch.tensor(EXTENTS, dtype=torch.uint8),
    "lists": EXTENTS,
    "tuples": tuple(map(tuple, EXTENTS)),
    "NumPy": np.array(EXTENTS),
    "NumPy uint16": np.array(EXTENTS, dtype=np.uint16),
    "read-only NumPy": np.broadcast_to(np.array(EXTENTS), (2, 2)),
}


@pytest.mark.parametrize("kind", KINDS)
def test_sizes_may_be_integers_of_any_kind(kind: str) -> None:
    torch.manual_seed(0)
    layer = MDLSTM(3, 4, directions="all", window=2)
    assert torch.equal(layer(X, KINDS[kind]), layer(X, torch.tensor(EXTENTS)))


@pytest.mark.filterwarnings("ignore:.*torch.tensor.*:UserWarning")
@pytest.mark.parametrize("kind", ["int32", "lists", "NumPy"])
def test_compiled_layers_take_sizes_without_a_break_in_the_graph(kind: str) -> None:
    layer = MDLSTM(3, 4)
    compiled = torch.compile(layer, fullgraph=True, backend="eager")
    assert torch.equal(compiled(X, KINDS[kind]), layer(X, torch.tensor(EXTENTS)))


def test_sizes_may_be_on_another_device() -> None:
    layer = MDLSTM(3, 4, device="meta")
    assert layer(X.to("meta"), torch.tensor(EXTENTS)).shape == (2, 4, 5, 4)
    with torch.device("meta"):
        assert MDLSTM(3, 4, device="cpu")(X, EXTENTS).shape == (2, 4, 5, 4)


BAD_SIZES = {
    "samples": ([[4, 5]], r"\(N, D\) = \(2, 2\), got int64 of shape \(1, 2\)"),
    "no batch axis": ([4, 5], r"\(N, D\) = \(2, 2\), got int64 of shape \(2,\)"),
    "floats": (torch.ones(2, 2), r"\(2, 2\), got float32"),
    "list of floats": ([[4.0, 5.0], [2.0, 3.0]], "got float"),
    "bools": ([[True, True], [True, False]], "got bool"),
    "a number": (4, r"got int64 of shape \(\)"),
    "text": ("4x5", "got '4x5'"),
    "no numbers": ([[4, None], [2, 3]], "got .*None"),
    "huge": ([[2**70, 5], [2, 3]], "got .*1180591620717411303424"),
    "ragged": ([[4, 5], [2]], r"got \[\[4, 5\], \[2\]\]"),
    "too large": (
        [[4, 5], [2, 6]],
        r"between 1 and the extents of the grid \(4, 5\), got \[2, 6\] for sample 1",
    ),
    "0": (torch.tensor([[4, 5], [0, 3]]), "got .*0, 3"),
    "negative": (np.array([[-1, 5], [2, 3]]), "got .*-1, 5"),
}


@pytest.mark.parametrize("case", BAD_SIZES)
def test_bad_sizes_are_named(case: str) -> None:
    sizes, message = BAD_SIZES[case]
    refused(f"sizes must .*{message}", lambda: MDLSTM(3, 4)(X, sizes))


@pytest.mark.parametrize("channels_last", [True, False])
@pytest.mark.parametrize("sizes", [None, (3, 4)])
@pytest.mark.parametrize("grid", [(5,), (5, 6), (2, 3, 4)], ids=str)
def test_a_sample_without_batch_axis(
    grid: tuple[int, ...], sizes: tuple[int, int] | None, channels_last: bool
) -> None:
    torch.manual_seed(0)
    ndim = len(grid)
    layer = MDLSTM(3, 4, ndim=ndim, num_layers=2, directions="all", window=2, channels_last=channels_last)
    x = torch.randn(*grid, 3) if channels_last else torch.randn(3, *grid)
    extents = None if sizes is None else [min(extent, 3) for extent in grid]
    y = layer(x, extents)
    features = 4 * 2**ndim
    windows = tuple(-(-extent // 2) for extent in grid)
    assert y.shape == ((*windows, features) if channels_last else (features, *windows))
    assert torch.equal(y, layer(x[None], None if extents is None else [extents])[0])
    if extents is not None:
        refused(r"sizes must be .*\(D,\) = ", lambda: layer(x, [extents]))


BAD_INPUTS = {
    "no tensor": (np.zeros((2, 3, 3, 3)), "x must be a torch.Tensor, got ndarray"),
    "axes": (
        torch.zeros(2, 2, 3, 3, 3),
        r"x must be \(N, E1, E2, C\).* C = 3, got shape \(2, 2, 3, 3, 3\)",
    ),
    "channels": (torch.zeros(2, 5, 5, 4), r"with C = 3, got shape \(2, 5, 5, 4\)$"),
    "dtype": (torch.zeros(2, 3, 3, 3, dtype=torch.double), "dtype torch.float32, got torch.float64"),
    "integers": (torch.zeros(2, 3, 3, 3, dtype=torch.int64), "dtype torch.float32, got torch.int64"),
    "device": (torch.zeros(2, 3, 3, 3, device="meta"), "device cpu, got meta; use x.to"),
}


@pytest.mark.parametrize("case", BAD_INPUTS)
def test_bad_inputs_are_named(case: str) -> None:
    x, message = BAD_INPUTS[case]
    refused(message, lambda: MDLSTM(3, 2)(x))


@pytest.mark.parametrize("batch", [(), (2,)], ids=["one sample", "batch"])
def test_the_other_layout_gets_a_hint(batch: tuple[int, ...]) -> None:
    last, first = MDLSTM(3, 2), MDLSTM(3, 2, channels_last=False)
    refused("channels_last=False", lambda: last(torch.zeros(*batch, 3, 8, 9)))
    refused("channels_last=True", lambda: first(torch.zeros(*batch, 8, 9, 3)))


def test_grey_images_without_an_axis_of_channels_get_a_hint() -> None:
    for channels_last in (True, False):
        layer = MDLSTM(1, 2, channels_last=channels_last)
        axis = -1 if channels_last else -3
        for shape in ((8, 9), (4, 8, 9)):
            x = torch.zeros(shape)
            refused(rf"x.unsqueeze\({axis}\)", lambda layer=layer, x=x: layer(x))
            layer(x.unsqueeze(axis))


def test_a_layer_without_memory_says_how_to_give_it_some() -> None:
    refused("to_empty", lambda: MDLSTM(3, 4, device="meta")(X))


@pytest.mark.filterwarnings("ignore:Complex modules:UserWarning")
def test_a_layer_of_an_unsupported_dtype_is_refused() -> None:
    layer = MDLSTM(3, 4).to(torch.complex64)
    refused("dtype must be .*complex64", lambda: layer(X.to(torch.complex64)))


def test_sizes_may_be_a_reversed_view() -> None:
    """Such as the (width, height) of pictures, read as (height, width)."""
    layer, columns = MDLSTM(3, 4), np.array([extents[::-1] for extents in EXTENTS])
    assert torch.equal(layer(X, columns[:, ::-1]), layer(X, EXTENTS))


def test_the_reference_makes_no_tensor_on_the_default_device() -> None:
    layer = MDLSTM(3, 4, device="cpu", backend="reference")
    with torch.device("meta"):
        y, _ = layer(X, return_state=True)
    assert y.device == torch.device("cpu")
