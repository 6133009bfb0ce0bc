"""Layers with random boundary states, and a grid that is swept in tiles."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves

from helpers.parity import DTYPES, assert_close_to
from mdlstm_tk import MDLSTM, BoundaryState
from mdlstm_tk.cells import get_cell

Faces = list[Tensor]  # h of every axis, then the first other state of every axis, and so on
UNITS = 3


def make_layer(grid: Sequence[int], dtype: torch.dtype = torch.float64, **options: Any) -> MDLSTM:
    torch.manual_seed(1)
    layer = MDLSTM(2, UNITS, ndim=len(grid), **options)
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.1)
    return layer.to(dtype)


def random_faces(
    batch: int, grid: Sequence[int], dirs: int, dtype: torch.dtype = torch.float64, cell: str = "graves"
) -> Faces:
    """Random boundary states; normalisers, which are called n, are positive."""
    shapes = [(batch, *grid[:d], *grid[d + 1 :], dirs, UNITS) for d in range(len(grid))]
    faces = []
    for name in ("h", *get_cell(cell).states):
        values = [torch.randn(shape, dtype=dtype) for shape in shapes]
        faces += [v.abs() + 0.5 if name == "n" else v for v in values]
    return [face.requires_grad_() for face in faces]


def to_state(faces: Faces, ndim: int = 2, cell: str = "graves") -> tuple[BoundaryState]:
    names = ("h", *get_cell(cell).states)
    return (
        BoundaryState(**{name: tuple(faces[k * ndim : (k + 1) * ndim]) for k, name in enumerate(names)}),
    )


def run(layer: MDLSTM, x: Tensor, faces: Faces, sizes: Tensor | None = None) -> tuple[Tensor, Faces]:
    state = to_state(faces, layer.ndim, layer.cell)
    y, last = layer(x, sizes, initial_state=state, return_state=True)
    return y, [face for face in tree_leaves(last) if face is not None]


def run_in_tiles(
    layer: MDLSTM, x: Tensor, faces: Faces, cuts: Sequence[Sequence[int]], detach: bool = False
) -> tuple[Tensor, Faces]:
    """The same, tile by tile; `cuts` are the places along each axis where the grid is cut. The layer has
    one direction. If `detach`, no gradients pass between tiles."""
    ndim = layer.ndim
    d = next((axis for axis in range(ndim) if cuts[axis]), None)
    if d is None:
        return run(layer, x, faces)
    place, *further = cuts[d]
    axes = [None if k % ndim == d else 1 + d - (k % ndim < d) for k in range(len(faces))]  # of the faces
    xs = [x.narrow(1 + d, 0, place), x.narrow(1 + d, place, x.shape[1 + d] - place)]
    rests = [[*cuts[:d], places, *cuts[d + 1 :]] for places in ([], [other - place for other in further])]
    outputs: dict[int, Tensor] = {}
    last: dict[int, Faces] = {}
    entering = faces
    order = (0, 1) if layer.directions[0][d] > 0 else (1, 0)
    for half in order:
        sizes = [part.shape[1 + d] for part in xs]
        given = [
            entering[k] if axis is None else face.split(sizes, axis)[half]
            for k, (face, axis) in enumerate(zip(faces, axes, strict=True))
        ]
        outputs[half], last[half] = run_in_tiles(layer, xs[half], given, rests[half], detach)
        entering = [face.detach() for face in last[half]] if detach else last[half]
    joined = [
        last[order[1]][k] if axis is None else torch.cat([last[0][k], last[1][k]], axis)
        for k, axis in enumerate(axes)
    ]
    return torch.cat([outputs[0], outputs[1]], 1 + d), joined


def results(y: Tensor, last: Faces, leaves: Sequence[Tensor]) -> Iterator[Tensor]:
    """Everything that the caller compares: y, the final states and the gradient of every leaf."""
    generator = torch.Generator().manual_seed(3)
    outputs = [y, *last]
    grads = [torch.randn(t.shape, generator=generator).to(t.device, t.dtype) for t in outputs]
    yield from outputs
    yield from torch.autograd.grad(outputs, leaves, grads, materialize_grads=True)


def check_tiles(layer: MDLSTM, grid: Sequence[int], cuts: Sequence[Sequence[int]]) -> None:
    dtype = next(layer.parameters()).dtype
    x = torch.randn(2, *grid, 2, dtype=dtype).requires_grad_()
    faces = random_faces(2, grid, 1, dtype, layer.cell)
    leaves = [x, *faces, *layer.parameters()]
    whole = results(*run(layer, x, faces), leaves)
    tiled = results(*run_in_tiles(layer, x, faces, cuts), leaves)
    tolerance = 1e-12 if dtype == torch.float64 else 1e-5
    for one, other in zip(tiled, whole, strict=True):
        torch.testing.assert_close(one, other, rtol=tolerance, atol=tolerance)


@dataclass(frozen=True)
class StateCase:
    """A layer of all directions that runs from random states."""

    grid: tuple[int, ...] = (3, 4)
    cell: str = "graves"
    sizes: bool = False
    directions: Any = "all"
    batch: int = 3
    dtype: str = "float64"
    options: tuple[str, ...] = ()  # that are True

    def __str__(self) -> str:
        grid = "x".join(map(str, self.grid))
        return "-".join([self.cell, grid, self.dtype, *(["sizes"] if self.sizes else []), *self.options])

    def run(self, backend: str, dtype: torch.dtype, device: str = "cpu") -> list[Tensor]:
        """The results; everything that is given is rounded to the case's own dtype first."""
        layer = make_layer(
            self.grid,
            DTYPES[self.dtype],
            cell=self.cell,
            directions=self.directions,
            backend=backend,
            **dict.fromkeys(self.options, True),
        ).to(device, dtype)

        def rounded(tensor: Tensor) -> Tensor:
            return tensor.detach().to(DTYPES[self.dtype]).to(device, dtype).requires_grad_()

        torch.manual_seed(2)
        x = rounded(torch.randn(self.batch, *self.grid, 2))
        faces = random_faces(self.batch, self.grid, len(layer.directions), torch.float32, self.cell)
        leaves = [rounded(face) for face in faces]
        sizes = None
        if self.sizes:
            sizes = torch.stack([torch.randint(1, e + 1, (self.batch,)) for e in self.grid], dim=1)
        outputs = run(layer, x, leaves, sizes)
        return [result.cpu() for result in results(*outputs, [x, *leaves, *layer.parameters()])]

    def check(self, backend: str, device: str = "cpu") -> None:
        """Compare with `reference` in float64."""
        tolerance = {"float64": 1e-11, "float32": 2e-5, "float16": 1e-2, "bfloat16": 6e-2}[self.dtype]
        truth = self.run("reference", torch.float64)
        for k, found in enumerate(self.run(backend, DTYPES[self.dtype], device)):
            assert_close_to(truth[k], found, tolerance, f"result {k}")
