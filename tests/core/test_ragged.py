"""Ragged batches: samples of different sizes in one padded batch. Only their valid positions are computed
and kept.

Fresh memory is poisoned with NaN throughout, so that a kernel that reads what nobody wrote shows.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch
from helpers.cuts import make_layer, run
from helpers.parity import random_faces
from torch import Tensor

from mdlstm_tk import MDLSTM, InputError

pytestmark = pytest.mark.usefixtures("poisoned_memory", "one_thread")

BATCHES: dict[str, tuple[tuple[int, ...], list[tuple[int, ...]]]] = {
    "one position each": ((5, 8), [(1, 1), (1, 1), (1, 1)]),
    "a whole grid": ((5, 8), [(1, 1), (5, 8), (1, 8), (5, 1)]),
    "a batch of 1": ((5, 8), [(2, 3)]),
    "nobody reaches the corner": ((5, 8), [(5, 2), (2, 8)]),
    "longer than a block": ((5, 8), [(1 + k % 5, 8 - k % 7) for k in range(40)]),
    "1-D": ((7,), [(7,), (1,), (3,)]),
    "3-D": ((2, 3, 4), [(1, 1, 1), (2, 1, 4), (2, 3, 3)]),
}
WINDOWS = {"cell": "stable", "num_layers": 2, "window": 2}


def outcome(layer: MDLSTM, x: Tensor, grads: Tensor, sizes: Any) -> tuple[Tensor, list[Tensor]]:
    """y, and the gradients of x and of every parameter."""
    x = x.detach().requires_grad_()
    y = layer(x, sizes)
    leaves = [x, *layer.parameters()]
    return y.detach(), list(torch.autograd.grad(y, leaves, grads, materialize_grads=True))


@pytest.mark.parametrize("backend", ["fused", "torch"])
@pytest.mark.parametrize(
    ("name", "options"), [*((name, {}) for name in BATCHES), ("a whole grid", WINDOWS)], ids=str
)
def test_samples_are_what_they_are_alone(name: str, options: dict[str, Any], backend: str) -> None:
    """Each one unpadded. What the padding holds is ignored, also if it is NaN, and also where windows reach
    into it."""
    grid, sizes = BATCHES[name]
    layer = make_layer(grid, backend=backend, **{"directions": "all", **options})

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
        expected[1][of_y], (expected[0][of_x], *of_parameters) = outcome(layer, x[of_x], grads[of_y], None)
        total = [one + other for one, other in zip(total, of_parameters, strict=True)]
    y, (dx, *gradients) = outcome(layer, x, grads, sizes)
    torch.testing.assert_close([dx, y], expected, rtol=1e-11, atol=1e-11)
    torch.testing.assert_close(gradients, total, rtol=1e-11, atol=1e-10)


@pytest.mark.parametrize("backend", ["fused", "torch"])
@pytest.mark.parametrize("cell", ["graves", "slstm"])
def test_states_enter_and_leave_at_the_far_ends_of_each_sample(cell: str, backend: str) -> None:
    """What a face holds outside a sample's valid extents is ignored, and 0 in what leaves."""
    grid, sizes = BATCHES["longer than a block"]
    layer = make_layer(grid, directions="all", cell=cell, backend=backend)
    x = torch.randn(len(sizes), *grid, 2, dtype=torch.float64)
    faces = [face.detach() for face in random_faces(len(sizes), grid, len(layer.directions), cell=cell)]
    lines = [[extents[1 - d % 2] for extents in sizes] for d in range(len(faces))]  # along axis d % 2
    for face, ends in zip(faces, lines, strict=True):
        for sample, end in enumerate(ends):
            face[sample, end:] = float("nan")
    y, last = run(layer, x, [face.requires_grad_() for face in faces], torch.tensor(sizes))
    gradients = torch.autograd.grad(
        [y.sum(), *(face.sum() for face in last)], [*faces, *layer.parameters()]
    )
    assert all(gradient.isfinite().all() for gradient in gradients)
    with torch.no_grad():
        torch.testing.assert_close(run(layer, x, faces, torch.tensor(sizes)), (y, last), rtol=0, atol=0)
    for k in (0, 17):
        inside = [face[k : k + 1, : ends[k]] for face, ends in zip(faces, lines, strict=True)]
        y_alone, last_alone = run(layer, x[k : k + 1, : sizes[k][0], : sizes[k][1]], inside)
        torch.testing.assert_close(y[k, : sizes[k][0], : sizes[k][1]], y_alone[0])
        for face, one, ends in zip(last, last_alone, lines, strict=True):
            torch.testing.assert_close(face[k, : ends[k]], one[0])
            assert not face[k, ends[k] :].any()


KINDS: dict[str, Any] = {
    "int32": torch.tensor([[4, 5], [2, 3]], dtype=torch.int32),
    "lists": [[4, 5], [2, 3]],
    "big-endian": np.array([[4, 5], [2, 3]], dtype=">i8"),
    "reversed": np.array([[5, 4], [3, 2]])[:, ::-1],  # (width, height) of pictures
}
BAD_VALUES = ([[4, 5], [2, 6]], [[4, 5], [0, 3]], [[-1, 5], [1, 3]])
BAD: tuple[Any, ...] = (*BAD_VALUES, [[4, 5]], [[True, True], [True, False]], [[4.0, 5.0], [2.0, 3.0]])


def test_sizes_are_integers_of_any_kind_inside_the_grid() -> None:
    layer, x = MDLSTM(3, 4), torch.randn(2, 4, 5, 3)
    expected = layer(x, torch.tensor([[4, 5], [2, 3]]))
    compiled = torch.compile(layer, backend="aot_eager", fullgraph=True)
    for sizes in KINDS.values():
        assert torch.equal(layer(x, sizes), expected)
    for bad in BAD:
        with pytest.raises(InputError, match="sizes must"):
            layer(x, bad)
        if bad in BAD_VALUES:
            with pytest.raises(InputError, match="sizes must"):  # where a captured graph reads them
                compiled(x, torch.tensor(bad))
    with pytest.raises(RuntimeError):  # inside a transform that hides them
        torch.func.vmap(layer)(x[None], torch.tensor([[[4, 5], [2, 3]]]))
    meta = MDLSTM(3, 4, device="meta")(x.to("meta"), [[4, 5], [2, 3]])
    assert meta.is_meta and meta.shape == expected.shape
