"""A sweep in parts: each starts with the states that the parts before it end with."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import product
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves

from helpers.parity import TOLERANCES, Case, Faces, assert_close_to, random_faces, to_state
from mdlstm_tk import MDLSTM


def make_layer(
    grid: Sequence[int], dtype: torch.dtype = torch.float64, backend: str = "auto", **options: Any
) -> MDLSTM:
    return Case(grid=tuple(grid), **options).layer(backend, dtype)


def run(layer: MDLSTM, x: Tensor, faces: Faces, sizes: Tensor | None = None) -> tuple[Tensor, Faces]:
    state = to_state(faces, layer.ndim, layer.cell)
    y, last = layer(x, sizes, initial_state=(state,), return_state=True)
    return y, tree_leaves(last)


def run_in_parts(
    layer: MDLSTM, x: Tensor, faces: Faces, cuts: Sequence[Sequence[int]]
) -> tuple[Tensor, Faces]:
    """The same, part by part.

    Args:
        layer: with one direction.
        x, faces: its input and initial states.
        cuts: the places along each axis where the grid is cut.
    """
    ndim, signs = layer.ndim, layer.directions[0]
    edges = [[0, *places, extent] for places, extent in zip(cuts, x.shape[1:-1], strict=True)]
    y = x.new_zeros(*x.shape[:-1], layer.output_size)
    last = [torch.zeros_like(face) for face in faces]
    leaving: dict[tuple[int, ...], Faces] = {}
    for part in product(*(range(len(e) - 1)[::sign] for e, sign in zip(edges, signs, strict=True))):
        box = [slice(e[k], e[k + 1]) for e, k in zip(edges, part, strict=True)]
        places = [(slice(None), *box[:d], *box[d + 1 :]) for d in range(ndim)]  # in the faces of each axis
        entering = []
        for k, face in enumerate(faces):
            d = k % ndim
            before = (*part[:d], part[d] - signs[d], *part[d + 1 :])
            entering.append(leaving[before][k] if before in leaving else face[places[d]])
        y[(slice(None), *box)], leaving[part] = run(layer, x[(slice(None), *box)], entering)
        for k, state in enumerate(leaving[part]):
            last[k][places[k % ndim]] = state  # of the parts along an axis, the one that is swept last
    return y, last


def results(y: Tensor, last: Sequence[Tensor], leaves: Sequence[Tensor]) -> Iterator[Tensor]:
    """Everything that the caller compares: y, the final states and the gradient of every leaf."""
    generator = torch.Generator().manual_seed(3)
    outputs = [y, *last]
    grads = [torch.randn(t.shape, generator=generator).to(t) for t in outputs]
    yield from outputs
    yield from torch.autograd.grad(outputs, leaves, grads, materialize_grads=True)


def check_parts(case: Case, cuts: Sequence[Sequence[int]], backend: str = "auto") -> None:
    """Compare a sweep in parts with the whole one. The layer has one direction."""
    layer = case.layer(backend)
    dtype = layer.weight_ih_l0.dtype
    x = torch.randn(case.batch, *case.grid, case.channels, dtype=dtype).requires_grad_()
    faces = random_faces(case.batch, case.grid, 1, case.units, case.cell)
    faces = [face.detach().to(dtype).requires_grad_() for face in faces]
    leaves = [x, *faces, *layer.parameters()]
    whole = results(*run(layer, x, faces), leaves)
    parts = results(*run_in_parts(layer, x, faces, cuts), leaves)
    for one, other in zip(parts, whole, strict=True):
        assert_close_to(other.double(), one, TOLERANCES[dtype], f"cut at {cuts}")
