"""Ragged batches: samples of different sizes in one padded batch. Only their valid positions are computed
and kept.

Fresh memory is poisoned with NaN throughout, so that a kernel that reads what nobody wrote shows.
"""

from __future__ import annotations

from itertools import product
from math import prod

import numpy as np
import pytest
import torch
from helpers.states import UNITS, make_layer, random_faces, results, run
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from mdlstm_tk import MDLSTM, InputError
from mdlstm_tk._util.masking import sizes_of_sweep, valid_mask
from mdlstm_tk.backends import tables
from mdlstm_tk.backends.cpu import launch, threads
from mdlstm_tk.backends.inputs import SweepInputs
from mdlstm_tk.operator import kept_rows, wavefront
from mdlstm_tk.wavefront import Direction, resolve_directions

pytestmark = pytest.mark.usefixtures("poisoned_memory", "one_thread")

BATCHES: dict[str, tuple[tuple[int, ...], list[tuple[int, ...]]]] = {
    "one position each": ((5, 8), [(1, 1), (1, 1), (1, 1)]),
    "one position and a whole grid": ((5, 8), [(1, 1), (5, 8), (1, 8), (5, 1)]),
    "a batch of 1": ((5, 8), [(2, 3)]),
    "equal sizes": ((5, 8), [(3, 4), (3, 4)]),
    "nobody reaches the corner": ((5, 8), [(5, 2), (2, 8)]),
    "longer than a block": ((5, 8), [(1 + k % 5, 8 - k % 7) for k in range(40)]),
    "1-D": ((7,), [(7,), (1,), (3,)]),
    "3-D": ((2, 3, 4), [(1, 1, 1), (2, 1, 4), (2, 3, 3)]),
    "4-D": ((2, 1, 3, 2), [(2, 1, 1, 2), (1, 1, 3, 1)]),
}


def outcome(
    layer: MDLSTM, x: Tensor, grads: Tensor, sizes: list[tuple[int, ...]] | None
) -> tuple[Tensor, list[Tensor]]:
    """y, and the gradients of x and of every parameter."""
    x = x.detach().requires_grad_()
    y = layer(x, sizes)
    leaves = [x, *layer.parameters()]
    return y.detach(), list(torch.autograd.grad(y, leaves, grads, materialize_grads=True))


@pytest.mark.parametrize("backend", ["fused", "torch"])
@pytest.mark.parametrize("name", BATCHES)
def test_samples_are_what_they_are_alone(name: str, backend: str) -> None:
    """Each one unpadded, by `reference`. What the padding holds is ignored, also if it is NaN."""
    grid, sizes = BATCHES[name]
    layer, alone = (make_layer(grid, directions="all", backend=b) for b in (backend, "reference"))
    x = torch.full((len(sizes), *grid, 2), float("nan"), dtype=torch.float64)
    grads = torch.randn(len(sizes), *grid, layer.output_size, dtype=torch.float64)
    expected = [torch.zeros_like(x), torch.zeros_like(grads)]
    total = [torch.zeros_like(parameter) for parameter in layer.parameters()]
    for k, extents in enumerate(sizes):
        box = (slice(k, k + 1), *map(slice, extents))
        x[box] = torch.randn(1, *extents, 2, dtype=torch.float64)
        expected[1][box], (expected[0][box], *of_parameters) = outcome(alone, x[box], grads[box], None)
        total = [one + other for one, other in zip(total, of_parameters, strict=True)]
    y, (dx, *gradients) = outcome(layer, x, grads, sizes)
    torch.testing.assert_close([dx, y], expected, rtol=1e-11, atol=1e-11)
    torch.testing.assert_close(gradients, total, rtol=1e-11, atol=1e-10)


@pytest.mark.parametrize("backend", ["fused", "torch"])
def test_the_order_of_samples_does_not_matter(backend: str) -> None:
    grid, sizes = BATCHES["one position and a whole grid"]
    layer, permuted = make_layer(grid, directions="all", backend=backend), [2, 0, 3, 1]
    x, faces = torch.randn(4, *grid, 2, dtype=torch.float64), random_faces(4, grid, 4)
    y, last = run(layer, x, faces, torch.tensor(sizes))
    again = run(layer, x[permuted], [f[permuted] for f in faces], torch.tensor(sizes)[permuted])
    torch.testing.assert_close(again, (y[permuted], [f[permuted] for f in last]))


@pytest.mark.parametrize("backend", ["fused", "torch"])
@pytest.mark.parametrize("name", ["one position and a whole grid", "longer than a block", "3-D"])
def test_states_of_ragged_batches_agree_with_reference(name: str, backend: str) -> None:
    grid, sizes = BATCHES[name]
    found = []
    for kind in (backend, "reference"):
        layer = make_layer(grid, directions="all", backend=kind)
        torch.manual_seed(2)
        x = torch.randn(len(sizes), *grid, 2, dtype=torch.float64).requires_grad_()
        faces = random_faces(len(sizes), grid, len(layer.directions))
        found.append(
            [*results(*run(layer, x, faces, torch.tensor(sizes)), [x, *faces, *layer.parameters()])]
        )
    torch.testing.assert_close(*found, rtol=1e-11, atol=1e-10)


@pytest.mark.parametrize("name", ["one position and a whole grid", "longer than a block", "3-D"])
def test_inference_keeps_c_of_two_wavefronts(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """And its final states are those of training: zeros for lines outside a sample's valid extents."""
    grid, sizes = BATCHES[name]
    layer, x = make_layer(grid, directions="all"), torch.randn(len(sizes), *grid, 2, dtype=torch.float64)
    faces = random_faces(len(sizes), grid, len(layer.directions))
    trained = run(layer, x, faces, torch.tensor(sizes))
    shapes: list[tuple[int, ...]] = []
    new = launch._new

    def recorded(like: Tensor, *shape: int) -> Tensor:
        shapes.append(shape)
        return new(like, *shape)

    monkeypatch.setattr(launch, "_new", recorded)
    with torch.no_grad():
        y, last = run(layer, x, faces, torch.tensor(sizes))
    assert torch.equal(y, trained[0])
    assert all(torch.equal(one, other) for one, other in zip(last, trained[1], strict=True))
    steps = [sum(p) for s in sizes for p in product(*map(range, s))]
    longest = max(map(steps.count, steps))
    dirs = len(layer.directions)
    assert shapes == [(len(sizes), *grid, dirs, UNITS), (dirs, 2 * longest, UNITS)]
    farthest = last[1][:, grid[0] - 1]  # h of the lines along axis 1 that samples of full height have
    full = torch.tensor([s[0] == grid[0] for s in sizes])
    assert farthest[full].any() and not farthest[~full].any()


@pytest.mark.parametrize("backend", ["fused", "torch"])
def test_full_sizes_are_no_sizes(backend: str) -> None:
    layer = make_layer((5, 8), torch.float32, directions="all", backend=backend)
    x, grads = torch.randn(3, 5, 8, 2), torch.randn(3, 5, 8, layer.output_size)
    y, gradients = outcome(layer, x, grads, None)
    again = outcome(layer, x, grads, [(5, 8)] * 3)
    assert torch.equal(y, again[0])
    assert all(torch.equal(one, other) for one, other in zip(gradients, again[1], strict=True))


def test_transforms_mask_what_they_cannot_leave_out() -> None:
    """Inside `torch.func` the values of `sizes` cannot be read."""
    grid, sizes = BATCHES["one position and a whole grid"]
    layer = make_layer(grid, directions="all")
    x, extents = torch.randn(2, 4, *grid, 2, dtype=torch.float64), torch.tensor(sizes)
    many = torch.stack([extents, extents.flip(0)])
    mapped = torch.func.vmap(layer)(x, many)
    torch.testing.assert_close(mapped, torch.stack([layer(*pair) for pair in zip(x, many, strict=True)]))
    derivative = torch.func.jvp(lambda x: layer(x, extents), (x[0],), (x[1],))[1]
    expected = torch.autograd.functional.jvp(lambda x: layer(x, extents), x[0], x[1])[1]
    torch.testing.assert_close(derivative, expected)


@pytest.mark.parametrize("name", BATCHES)
def test_valid_mask_is_the_same_in_a_transform(name: str) -> None:
    """Outside of one, NumPy computes it."""
    grid, sizes = BATCHES[name]
    assert valid_mask((), torch.empty(3, 0, dtype=torch.int64)).tolist() == [True] * 3  # a face of a line
    mask = valid_mask(grid, torch.tensor(sizes))
    assert torch.equal(torch.func.vmap(lambda s: valid_mask(grid, s[None])[0])(torch.tensor(sizes)), mask)
    for valid, extents in zip(mask, sizes, strict=True):
        assert valid.sum() == valid[tuple(map(slice, extents))].numel() == prod(extents)
        assert valid[tuple(map(slice, extents))].all()


def test_sizes_reach_a_sweep_on_the_cpu() -> None:
    """Where they are read without a wait; so here x is on a device that cannot be read at all."""
    x = torch.empty(3, 5, 8, 2, device="meta")
    sizes = sizes_of_sweep([(5, 8), (2, 3), (1, 8)], x)
    assert sizes is not None and sizes.device.type == "cpu" and sizes.dtype == torch.int64
    assert sizes_of_sweep([(5, 8)] * 3, x) is None
    with pytest.raises(InputError, match=r"between 1 and .* \(5, 8\), got \[2, 9\] for sample 1"):
        sizes_of_sweep([(5, 8), (2, 9), (1, 8)], x)
    y = MDLSTM(2, 4, directions="all", device="meta")(x, sizes)
    assert y.shape == (3, 5, 8, 16) and y.is_meta
    y.sum().backward()


@pytest.mark.parametrize("directions", ["all", [(1, -1)]], ids=["directions", "rows"])
def test_threads_share_a_ragged_batch(
    directions: str | list[Direction], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each takes whole directions, or all share the rows of a wavefront."""
    for name in ("MIN_SWEEP_OPERATIONS", "MIN_WAVEFRONT_OPERATIONS"):
        monkeypatch.setattr(threads, name, 1)
    grid, sizes = BATCHES["longer than a block"]
    layer = make_layer(grid, directions=directions, backend="fused")
    x = torch.randn(40, *grid, 2, dtype=torch.float64)
    grads = torch.randn(40, *grid, layer.output_size, dtype=torch.float64)
    one = outcome(layer, x, grads, sizes)
    made: list[int] = []
    make_plan = launch.make_plan

    def recorded(*arguments: object) -> object:
        plan = make_plan(*arguments)  # type: ignore[arg-type]
        made.append(plan.division.threads)
        return plan

    monkeypatch.setattr(launch, "make_plan", recorded)
    torch.set_num_threads(2)
    torch.testing.assert_close(outcome(layer, x, grads, sizes), one)
    assert made == [2, 2]


def kept_bytes(layer: MDLSTM, x: Tensor, sizes: list[tuple[int, ...]] | None) -> int:
    """Bytes that a layer keeps for its backward pass, without what it is given."""
    kept: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        layer(x, sizes)
    return sum(kept.values()) - sum(p.untyped_storage().nbytes() for p in layer.parameters())


@pytest.mark.parametrize("backend", ["fused", "torch"])
def test_memory_kept_is_that_of_valid_positions(backend: str) -> None:
    layer = MDLSTM(1, 32, directions="all", backend=backend)
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
        found = []
        for module in (compiled, layer):
            y = module(x, sizes, return_state=states)
            y = y[0] + y[1][0].h[0].sum() if states else y
            found.append((y, torch.autograd.grad(y.square().sum(), list(layer.parameters()))))
        torch.testing.assert_close(*found)


def operator_inputs(sizes: Tensor) -> SweepInputs:
    layer, x = make_layer((3, 4)), torch.randn(2, 3, 4, 2, dtype=torch.float64)
    parameters = (layer.weight_ih_l0, layer.weight_hh_l0, layer.bias_l0, None, None, None)
    return SweepInputs(x, *parameters, sizes, (1, 1), "graves")  # type: ignore[arg-type]


def test_the_operator_keeps_as_many_rows_as_it_is_told() -> None:
    inputs = operator_inputs(torch.tensor([[3, 4], [2, 1]]))
    assert kept_rows(inputs, save=True) == 14 and kept_rows(inputs, save=False) is None
    for rows, kept in ((14, 14), (20, 20), (None, 24)):
        _, gates, c = wavefront(*inputs, True, False, "fused", rows)
        assert gates.shape[1] == c.shape[1] == kept
        assert c[:, :14].abs().min() > 0 and not c[:, 14:].any() and not gates[:, 14:].any()
    with pytest.raises(InputError, match="rows must be None or at least 14, got 13"):
        wavefront(*inputs, True, False, "fused", 13)


@pytest.mark.parametrize("backend", ["fused", "torch"])
def test_sizes_that_a_captured_graph_gets_are_cut_to_the_grid(backend: str) -> None:
    """Nobody has checked them, and kernels trust their tables."""
    given, meant = torch.tensor([[9, -3], [99, 2]]), torch.tensor([[3, 0], [3, 2]])
    torch.manual_seed(0)
    inputs = operator_inputs(given)
    outputs = [wavefront(*inputs._replace(sizes=s), True, False, backend)[0] for s in (given, meant)]
    assert torch.equal(*outputs) and not outputs[0][0].any() and outputs[0][1, :, :2].all()
    empty = inputs._replace(sizes=torch.zeros(2, 2, dtype=torch.int64))
    assert not wavefront(*empty, True, False, backend)[0].any()


@given(st.data())
def test_tables_against_brute_force(data: st.DataObject) -> None:
    grid = tuple(data.draw(st.lists(st.integers(1, 4), min_size=1, max_size=3)))
    extent = st.tuples(*(st.integers(1, limit) for limit in grid))
    sizes = data.draw(st.lists(extent, min_size=1, max_size=3))
    directions = resolve_directions("all", len(grid))
    made = tables._make_ragged_tables([*map(list, sizes)], grid, directions, torch.device("cpu"))
    assert made.positions == sum(map(prod, sizes)) == sum(made.counts)
    starts = made.starts[1:-1].tolist()
    assert np.diff(starts).tolist() == made.counts and min(made.counts) > 0
    for order, inverse, direction in zip(
        made.order.numpy(), made.inverse_order.numpy(), directions, strict=True
    ):
        visited = [tuple(map(int, np.unravel_index(place, (len(sizes), *grid)))) for place in order]
        visits = {place: visit for visit, place in enumerate(visited)}
        assert set(visits) == {(k, *p) for k, s in enumerate(sizes) for p in product(*map(range, s))}
        assert [inverse[place] for place in order] == list(range(len(order)))
        assert (inverse >= 0).sum() == len(order)
        for visit, (sample, *position) in enumerate(visited):
            steps = [
                p if sign > 0 else size - 1 - p
                for p, size, sign in zip(position, sizes[sample], direction, strict=True)
            ]
            assert starts[sum(steps)] <= visit < starts[sum(steps) + 1]
            for d, sign in enumerate(direction):
                for table, step in ((made.predecessors, -sign), (made.successors, sign)):
                    neighbour = (sample, *position[:d], position[d] + step, *position[d + 1 :])
                    assert table[d, visit] == visits.get(neighbour, -1)
