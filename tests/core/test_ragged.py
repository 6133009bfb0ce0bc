"""Ragged batches: samples of different sizes in one padded batch. Only their valid positions are computed
and kept.

Fresh memory is poisoned with NaN throughout, so that a kernel that reads what nobody wrote shows.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
import torch
from helpers.cuts import make_layer, run
from helpers.parity import random_faces
from torch import Tensor

from mdlstm_tk import MDLSTM, InputError
from mdlstm_tk._util.masking import sizes_of_sweep

pytestmark = pytest.mark.usefixtures("poisoned_memory", "one_thread")

BATCHES: dict[str, tuple[tuple[int, ...], list[tuple[int, ...]]]] = {
    "one position each": ((5, 8), [(1, 1), (1, 1), (1, 1)]),
    "a whole grid": ((5, 8), [(1, 1), (5, 8), (1, 8), (5, 1)]),
    "a batch of 1": ((5, 8), [(2, 3)]),
    "equal sizes": ((5, 8), [(3, 5), (3, 5)]),
    "nobody reaches the corner": ((5, 8), [(5, 2), (2, 8)]),
    "longer than a block": ((5, 8), [(1 + k % 5, 8 - k % 7) for k in range(40)]),
    "1-D": ((7,), [(7,), (1,), (3,)]),
    "3-D": ((2, 3, 4), [(1, 1, 1), (2, 1, 4), (2, 3, 3)]),
    "4-D": ((2, 1, 3, 2), [(2, 1, 1, 2), (1, 1, 3, 1)]),
}
WINDOWS = {"cell": "stable", "num_layers": 2, "window": 2}


def outcome(
    layer: MDLSTM, x: Tensor, grads: Tensor, sizes: list[tuple[int, ...]] | None
) -> tuple[Tensor, list[Tensor]]:
    """y, and the gradients of x and of every parameter."""
    x = x.detach().requires_grad_()
    y = layer(x, sizes)
    leaves = [x, *layer.parameters()]
    return y.detach(), list(torch.autograd.grad(y, leaves, grads, materialize_grads=True))


@pytest.mark.parametrize("backend", ["fused", "torch"])
@pytest.mark.parametrize(
    ("name", "options"),
    [*((name, {}) for name in BATCHES), *((name, WINDOWS) for name in ("equal sizes", "a whole grid"))],
    ids=str,
)
def test_samples_are_what_they_are_alone(name: str, options: dict[str, Any], backend: str) -> None:
    """Each one unpadded, by `reference`. What the padding holds is ignored, also if it is NaN, and also
    where windows reach into it."""
    grid, sizes = BATCHES[name]
    options = {"directions": "all", **options}
    layer, alone = (make_layer(grid, backend=b, **options) for b in (backend, "reference"))

    def box(sample: int, extents: Sequence[int], window: Sequence[int]) -> tuple[slice, ...]:
        ends = [-(-extent // size) for extent, size in zip(extents, window, strict=True)]
        return slice(sample, sample + 1), *map(slice, ends)

    x = torch.full((len(sizes), *grid, 2), float("nan"), dtype=torch.float64)
    whole = [end.stop for end in box(0, grid, layer.window)[1:]]
    grads = torch.randn(len(sizes), *whole, layer.output_size, dtype=torch.float64)
    expected = [torch.zeros_like(x), torch.zeros_like(grads)]
    total = [torch.zeros_like(parameter) for parameter in layer.parameters()]
    for k, extents in enumerate(sizes):
        of_x, of_y = box(k, extents, [1] * len(grid)), box(k, extents, layer.window)
        x[of_x] = torch.randn(1, *extents, 2, dtype=torch.float64)
        expected[1][of_y], (expected[0][of_x], *of_parameters) = outcome(alone, x[of_x], grads[of_y], None)
        total = [one + other for one, other in zip(total, of_parameters, strict=True)]
    y, (dx, *gradients) = outcome(layer, x, grads, sizes)
    torch.testing.assert_close([dx, y], expected, rtol=1e-11, atol=1e-11)
    torch.testing.assert_close(gradients, total, rtol=1e-11, atol=1e-10)


@pytest.mark.parametrize("backend", ["fused", "torch"])
@pytest.mark.parametrize("cell", ["graves", "slstm"])
def test_final_states_are_the_same_without_gradients(cell: str, backend: str) -> None:
    """Zeros for lines outside a sample's valid extents, among them."""
    grid, sizes = BATCHES["longer than a block"]
    layer = make_layer(grid, directions="all", cell=cell, backend=backend)
    x = torch.randn(len(sizes), *grid, 2, dtype=torch.float64)
    faces = random_faces(len(sizes), grid, len(layer.directions), cell=cell)
    y, last = run(layer, x, faces, torch.tensor(sizes))
    with torch.no_grad():
        torch.testing.assert_close(run(layer, x, faces, torch.tensor(sizes)), (y, last), rtol=0, atol=0)
    farthest = last[1][:, grid[0] - 1]  # h of the lines along axis 1 that samples of full height have
    full = torch.tensor([s[0] == grid[0] for s in sizes])
    assert farthest[full].any() and not farthest[~full].any()


def test_transforms_mask_what_they_cannot_leave_out() -> None:
    """Inside `torch.func` the values of `sizes` cannot be read."""
    grid, sizes = BATCHES["a whole grid"]
    layer = make_layer(grid, directions="all")
    x, extents = torch.randn(2, 4, *grid, 2, dtype=torch.float64), torch.tensor(sizes)
    many = torch.stack([extents, extents.flip(0)])
    mapped = torch.func.vmap(layer)(x, many)
    torch.testing.assert_close(mapped, torch.stack([layer(*pair) for pair in zip(x, many, strict=True)]))
    derivative = torch.func.jvp(lambda x: layer(x, extents), (x[0],), (x[1],))[1]
    expected = torch.autograd.functional.jvp(lambda x: layer(x, extents), x[0], x[1])[1]
    torch.testing.assert_close(derivative, expected)


@pytest.mark.parametrize("sizes", [[[4, 2], [1, 0]], [[4, 2], [5, 3]], [[4, 4], [1, 3]], [[-1, 1], [1, 1]]])
@pytest.mark.parametrize("axis", [0, 1, 2])
def test_transforms_check_sizes(sizes: list[list[int]], axis: int) -> None:
    layer, x = MDLSTM(2, 3), torch.zeros(2, 1, 4, 3, 2)
    bad = torch.tensor(sizes)[:, None].movedim(0, axis)
    mapped = torch.func.vmap(layer, in_dims=(0, axis))
    mapped(x, bad.clamp(1, 3))
    with pytest.raises(InputError, match=r"1 and the extents of the grid \(4, 3\), got -?\d along axis"):
        mapped(x, bad)
    with pytest.raises(InputError, match="between 1 and"):  # `bad` itself is mapped by none
        torch.func.vmap(lambda x: layer(x, sizes))(torch.zeros(2, 2, 4, 3, 2))


def test_sizes_reach_a_sweep_on_the_cpu() -> None:
    """Where they are read without a wait; so here x is on a device that cannot be read at all."""
    x = torch.empty(3, 5, 8, 2, device="meta")
    sizes = sizes_of_sweep([(5, 8), (2, 3), (1, 8)], x)
    assert sizes is not None and sizes.device.type == "cpu" and sizes.dtype == torch.int64
    assert sizes_of_sweep([(5, 8)] * 3, x) is None
    y = MDLSTM(2, 4, directions="all", device="meta")(x, sizes)
    assert y.shape == (3, 5, 8, 16) and y.is_meta
    y.sum().backward()


def kept_bytes(layer: MDLSTM, x: Tensor, sizes: list[tuple[int, ...]] | None) -> int:
    """Bytes that a layer keeps for its backward pass, without its parameters."""
    storages: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        storages[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        layer(x, sizes)
    return sum(storages.values()) - sum(p.untyped_storage().nbytes() for p in layer.parameters())


def test_memory_kept_is_that_of_valid_positions() -> None:
    """Of the torch backend; kernels keep a row for each position."""
    layer = MDLSTM(1, 32, directions="all", backend="torch")
    x, sizes = torch.randn(4, 16, 16, 1), [(8, 4), (4, 8), (16, 2), (2, 16)]
    dense = 4 * 32 * 4 * x.numel()  # y, of all positions
    gates_and_c = (kept_bytes(layer, x, None) - dense, kept_bytes(layer, x, sizes) - dense)
    assert 0.125 <= gates_and_c[1] / gates_and_c[0] < 0.14  # an eighth of the positions, and x


@pytest.mark.parametrize("states", [False, True], ids=["plain", "states"])
def test_compiled_layers_take_any_sizes(states: bool) -> None:
    """A captured graph does not know how many rows a batch has."""
    layer = make_layer((3, 4), directions="all", backend="fused")
    compiled = torch.compile(layer, backend="aot_eager", fullgraph=True)
    x = torch.randn(2, 3, 4, 2, dtype=torch.float64)
    for sizes in (torch.tensor([[3, 4], [2, 1]]), torch.tensor([[1, 1], [1, 2]])):
        results = []
        for module in (compiled, layer):
            y = module(x, sizes, return_state=states)
            y = y[0] + y[1][0].h[0].sum() if states else y
            results.append((y, torch.autograd.grad(y.square().sum(), list(layer.parameters()))))
        torch.testing.assert_close(*results)


@pytest.mark.parametrize("backend", ["fused", "torch"])
@pytest.mark.parametrize("sizes", [[[3, 4], [9, 2]], [[0, 4], [3, 2]], [[1, 1], [1, -3]]], ids=str)
def test_sizes_that_a_captured_graph_gets_are_checked_where_they_are_read(
    sizes: list[list[int]], backend: str
) -> None:
    layer, x = make_layer((3, 4)), torch.randn(2, 3, 4, 2, dtype=torch.float64)
    compiled = torch.compile(make_layer((3, 4), backend=backend), backend="aot_eager", fullgraph=True)
    for module in (layer, compiled):
        module(x, torch.tensor([[3, 4], [1, 2]]))
        with pytest.raises(InputError, match=r"sizes must lie between 1 and .* \(3, 4\), got"):
            module(x, torch.tensor(sizes))
