"""Layers with random boundary states, and a grid that is swept in tiles."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise, product
from typing import Any

import torch
from torch import Tensor

from helpers.parity import DTYPES
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
    """Random boundary states; the normaliser n of an sLSTM is positive."""
    shapes = [(batch, *grid[:d], *grid[d + 1 :], dirs, UNITS) for d in range(len(grid))]
    faces = []
    for name in ("h", *get_cell(cell).states):
        values = [torch.randn(shape, dtype=dtype) for shape in shapes]
        faces += [v.abs() + 0.5 if name == "n" else v for v in values]
    return [face.requires_grad_() for face in faces]


def to_state(faces: Faces, ndim: int, cell: str = "graves") -> tuple[BoundaryState]:
    names = ("h", *get_cell(cell).states)
    return (
        BoundaryState(**{name: tuple(faces[k * ndim : (k + 1) * ndim]) for k, name in enumerate(names)}),
    )


def run(layer: MDLSTM, x: Tensor, faces: Faces, sizes: Tensor | None = None) -> tuple[Tensor, Faces]:
    state = to_state(faces, layer.ndim, layer.cell)
    y, (final,) = layer(x, sizes, initial_state=state, return_state=True)
    names = ("h", *get_cell(layer.cell).states)
    return y, [face for name in names for face in getattr(final, name)]


def run_in_tiles(
    layer: MDLSTM, x: Tensor, faces: Faces, cuts: Sequence[Sequence[int]], detach: bool = False
) -> tuple[Tensor, Faces]:
    """The same, tile by tile; `cuts` are the places along each axis where the grid is cut. The layer has
    one direction. If `detach`, no gradients pass between tiles."""
    (direction,), grid = layer.directions, x.shape[1:-1]
    ndim = len(grid)
    edges = [list(pairwise([0, *places, extent])) for places, extent in zip(cuts, grid, strict=True)]
    order = [list(range(len(e)))[::sign] for e, sign in zip(edges, direction, strict=True)]
    outputs: dict[tuple[int, ...], Tensor] = {}
    leaving: dict[tuple[int, ...], Faces] = {}
    for tile in product(*order):
        ranges = [slice(*edges[d][k]) for d, k in enumerate(tile)]
        entering = []
        for index, face in enumerate(faces):
            d = index % ndim
            before = (*tile[:d], tile[d] - direction[d], *tile[d + 1 :])
            others = (slice(None), *ranges[:d], *ranges[d + 1 :])
            if before in leaving:
                left = leaving[before][index]
                entering.append(left.detach() if detach else left)
            else:
                entering.append(face[others])
        outputs[tile], leaving[tile] = run(layer, x[(slice(None), *ranges)], entering)
    last = []
    for index in range(len(faces)):
        d = index % ndim
        ends = {
            (*tile[:d], *tile[d + 1 :]): faces[index]
            for tile, faces in leaving.items()
            if tile[d] == order[d][-1]
        }
        last.append(assemble(ends))
    return assemble(outputs), last


def assemble(parts: dict[tuple[int, ...], Tensor]) -> Tensor:
    """Join tiles along the axes that their keys count."""
    while (axes := len(next(iter(parts)))) > 0:
        rows: dict[tuple[int, ...], list[Tensor]] = {}
        for key in sorted(parts):
            rows.setdefault(key[:-1], []).append(parts[key])
        parts = {key: torch.cat(row, dim=axes) for key, row in rows.items()}
    return parts[()]


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
        for found, exact in zip(self.run(backend, DTYPES[self.dtype], device), truth, strict=True):
            scale = max(1.0, exact.abs().max().item() if exact.numel() else 0.0)
            torch.testing.assert_close(found.double(), exact, rtol=0, atol=tolerance * scale)
