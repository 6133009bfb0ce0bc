"""One layer with everything that it depends on, and the oracle in float64 as the truth about it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from math import prod
from typing import Any

import torch
from torch import Tensor
from torch.func import functional_call
from torch.utils._pytree import tree_leaves

from helpers import oracle
from helpers.pairs import all_pairs
from mdlstm_tk import MDLSTM, BoundaryState, tiling
from mdlstm_tk.cells import get_cell

HALVES = (torch.float16, torch.bfloat16)
# The cost of rounding h, da and the results to the dtype; sums and gates are exact beside it. Results are
# relative to the largest entry, or to 1 if that is smaller.
TOLERANCES = {torch.float32: 2e-5, torch.float64: 1e-11, torch.float16: 1e-2, torch.bfloat16: 6e-2}
LAYER_OPTIONS = (  # arguments of `MDLSTM` that `Case` has under the same name
    *("num_layers", "directions", "merge", "cell", "layer_norm", "peephole", "window", "bias"),
    *("channels_last", "recompute"),
)
LAYOUTS = ("contiguous", "transposed", "strided", "expanded")
# Cell, axes, dtype and what else a kernel depends on. Each compiles for about a second, so other tests of
# the core take these, too.
KERNELS: list[dict[str, Any]] = [
    {"cell": "graves", "ndim": 2},
    {"cell": "graves", "ndim": 2, "dtype": "float32", "recompute": True},
    {"cell": "graves", "ndim": 2, "layer_norm": True, "peephole": True},
    {"cell": "graves", "ndim": 1, "peephole": True},
    {"cell": "graves", "ndim": 3, "layer_norm": True, "peephole": True, "recompute": True},
    {"cell": "mean", "ndim": 2},
    {"cell": "mean", "ndim": 3, "dtype": "float32"},
    {"cell": "stable", "ndim": 2, "recompute": True},
    {"cell": "stable", "ndim": 2, "dtype": "float32", "layer_norm": True},
    {"cell": "stable", "ndim": 2, "dtype": "bfloat16", "layer_norm": True},
    {"cell": "stable", "ndim": 3},
    {"cell": "leaky", "ndim": 2, "layer_norm": True},
    {"cell": "leaky", "ndim": 1, "dtype": "float32"},
    {"cell": "leaky", "ndim": 2, "dtype": "float16"},
    {"cell": "slstm", "ndim": 2},
    {"cell": "slstm", "ndim": 1, "layer_norm": True, "recompute": True},
    {"cell": "slstm", "ndim": 2, "dtype": "bfloat16"},
    {"cell": "slstm", "ndim": 3, "dtype": "float32", "layer_norm": True},
    {"cell": "fast-and-slow", "ndim": 2, "layer_norm": True, "recompute": True},
    {"cell": "input-gated", "ndim": 2},
    {"cell": "gru", "ndim": 3},
]
Faces = list[Tensor]  # h of every axis, then the first other state of every axis, and so on


@dataclass(frozen=True)
class Case:
    """A layer and its input, drawn from a seed. 21 units make vectors of every width.

    Attributes:
        cell, units, …, recompute: arguments of `MDLSTM`.
        grid, batch, channels: of x.
        sizes: whether samples have sizes of their own; x is then NaN outside them.
        states: whether the sweep starts from random states and returns final ones.
        layout: how x, parameters and the gradient of y lie in memory.
        wants: "all", "x" or "weights", the leaves that need a gradient.
        tile: extents of tiles with which `tiling.checkpointed` runs the layer.
        dtype: of x and the parameters.
    """

    cell: str = "graves"
    grid: tuple[int, ...] = (3, 4)
    batch: int = 2
    units: int = 5
    channels: int = 2
    directions: Any = 1
    merge: str = "concat"
    num_layers: int = 1
    window: Any = 1
    channels_last: bool = True
    bias: bool = True
    layer_norm: bool = False
    peephole: bool = False
    recompute: bool = False
    sizes: bool = False
    states: bool = False
    layout: str = "contiguous"
    wants: str = "all"
    tile: Any = None
    dtype: str = "float64"

    def __str__(self) -> str:
        plain = Case()
        changed = {name: value for name, value in vars(self).items() if value != getattr(plain, name)}
        texts = [
            f"{name}={str(value).replace(' ', '')}" if value is not True else name
            for name, value in changed.items()
            if name not in ("cell", "grid")
        ]
        return "-".join([self.cell, "x".join(map(str, self.grid)), *texts])

    @property
    def torch_dtype(self) -> torch.dtype:
        return getattr(torch, self.dtype)  # type: ignore[no-any-return]

    def layer(self, backend: str = "auto", dtype: torch.dtype | None = None) -> MDLSTM:
        """The layer; its parameters are rounded to the case's own dtype first."""
        torch.manual_seed(1)
        options = {name: getattr(self, name) for name in LAYER_OPTIONS}
        layer = MDLSTM(self.channels, self.units, ndim=len(self.grid), backend=backend, **options)
        with torch.no_grad():
            for parameter in layer.parameters():  # none at 0 or 1, where a mistake might not show
                parameter.add_(torch.randn_like(parameter), alpha=0.1)
        return layer.to(self.torch_dtype).to(dtype or self.torch_dtype)

    def run(self, backend: str, dtype: torch.dtype | None = None, device: str = "cpu") -> dict[str, Tensor]:
        """y, the final states, and the gradient of every leaf that wants one, on the CPU; by a backend, or
        by the "oracle"."""
        dtype, is_oracle = dtype or self.torch_dtype, backend == "oracle"
        layer = self.layer("auto" if is_oracle else backend, dtype).to(device)
        random = torch.Generator().manual_seed(2)
        sizes = None
        if self.sizes:
            extents = [torch.randint(1, e + 1, (self.batch,), generator=random) for e in self.grid]
            sizes = torch.stack(extents, dim=1)

        def leaf(values: Tensor, wants: bool) -> tuple[Tensor, Tensor]:
            rounded = values.to(self.torch_dtype).to(device, dtype)
            return laid_out(rounded, self.layout, wants)

        x = torch.randn(self.batch, *self.grid, self.channels, generator=random)
        has_padding = sizes is not None and self.layout != "expanded"  # there, samples share memory
        for k in range(self.batch if has_padding else 0):
            inside = torch.zeros(self.grid, dtype=torch.bool)
            inside[tuple(map(slice, sizes[k].tolist()))] = True
            x[k][~inside] = torch.nan
        leaves, parameters = {}, {}
        leaves["x"], x = leaf(x if self.channels_last else x.movedim(-1, 1), self.wants != "weights")
        for name, parameter in layer.named_parameters():
            leaves[name], parameters[name] = leaf(parameter.detach(), self.wants != "x")
        arguments: dict[str, Any] = {"sizes": sizes if sizes is None else sizes.to(device)}
        if self.states:
            windows = [-(-e // w) for e, w in zip(self.grid, layer.window, strict=True)]
            shape = self.batch, windows, len(layer.directions), self.units, self.cell
            initial = [random_faces(*shape, generator=random) for _ in range(self.num_layers)]
            for k, faces in enumerate(initial):
                for j, face in enumerate(faces):
                    rounded = face.detach().to(self.torch_dtype).to(device, dtype)
                    leaves[f"initial {k} {j}"] = faces[j] = rounded.requires_grad_()
            arguments["initial_state"] = tuple(to_state(f, layer.ndim, self.cell) for f in initial)
            arguments["return_state"] = True
        if is_oracle:
            starts = [pack(faces, layer.ndim) for faces in initial] if self.states else None
            y, finals = oracle.run(layer, parameters, x, sizes, starts)
            if not len(x):  # what is computed nowhere depends on nothing
                y = y + 0 * sum(t.sum() for t in (x, *parameters.values()))
            result = [y, [unpack(final, windows) for final in finals if self.states]]
        elif self.tile is None:
            result = functional_call(layer, parameters, (x,), arguments)
        else:
            for name, value in parameters.items():
                layer._parameters[name] = value  # `checkpointed` wants a layer
            result = tiling.checkpointed(layer, x, self.tile, **arguments)
        outputs = [t for t in tree_leaves(result) if t is not None]
        grads = [torch.randn(t.shape, generator=random).to(self.torch_dtype).to(t) for t in outputs]
        pairs = [(t, grad) for t, grad in zip(outputs, grads, strict=True) if t.requires_grad]
        differentiable = {name: t for name, t in leaves.items() if t.requires_grad}
        gradients = torch.autograd.grad(
            [t for t, _ in pairs],
            list(differentiable.values()),
            [laid_out(grad, self.layout, False)[1] for _, grad in pairs],
            materialize_grads=True,
        )
        tensors = {f"output {k}": t.detach() for k, t in enumerate(outputs)}
        tensors |= zip(differentiable, gradients, strict=True)
        return {name: t.cpu() for name, t in tensors.items()}

    def check(self, backend: str, device: str = "cpu") -> None:
        """Compare with the oracle."""
        dtype = self.torch_dtype
        exact = replace(self, tile=None, dtype=self.dtype if dtype in HALVES else "float64")
        truth, results = _truth(exact), self.run(backend, device=device)
        assert results.keys() == truth.keys()
        tolerance = TOLERANCES[dtype] * (self.num_layers if dtype in HALVES else 1)
        for name, result in results.items():
            assert_close_to(truth[name], result, tolerance, name)


SIGNS = {"backwards": lambda ndim: ((-1,) * ndim,), "two": lambda ndim: ((1,) * ndim, (-1, 1, -1)[:ndim])}


def combined(grids: dict[int, Sequence[tuple[int, ...]]]) -> list[Case]:
    """Cases in which any two options meet, with as many grids for each number of axes."""
    rows = all_pairs(
        kernel=KERNELS,
        grid=range(len(grids[1])),
        directions=[1, "all", *SIGNS],
        batch=[2, 3, 0],
        units=[1, 4, 5],
        layout=LAYOUTS,
        wants=["all", "x", "weights"],
        window=[1, 2, (2, 1, 3)],
        num_layers=[1, 2],
        merge=["concat", "sum", "mean"],
        channels_last=[True, False],
        bias=[True, False],
        sizes=[False, True],
        states=[False, True],
    )
    cases = []
    for row in rows:
        kernel = dict(row.pop("kernel"))
        ndim = kernel.pop("ndim")
        row["grid"] = grids[ndim][row["grid"]]
        if isinstance(row["window"], tuple):
            row["window"] = row["window"][:ndim]
        if row["directions"] in SIGNS:
            row["directions"] = SIGNS[row["directions"]](ndim)
        row["bias"] |= kernel.get("layer_norm", False)
        cases.append(Case(**kernel, **row))
    return cases


def assert_close_to(truth: Tensor, actual: Tensor, tolerance: float, name: str) -> None:
    """Compare with a result in float64, relative to its largest entry, or to 1 if that is smaller."""
    scale = max([1.0, *truth.abs().flatten().tolist()])
    torch.testing.assert_close(
        actual.double(), truth, rtol=0, atol=tolerance * scale, msg=lambda text: f"{name}: {text}"
    )


@lru_cache(maxsize=1)
def _truth(case: Case) -> dict[str, Tensor]:
    return case.run("oracle", torch.float64)


def laid_out(values: Tensor, layout: str, wants: bool) -> tuple[Tensor, Tensor]:
    """A leaf with a gradient if `wants`, and a view of it that has these values, and whose memory is laid
    out as `layout` says. An expanded one has the values of the first index of its first axis everywhere."""
    if layout == "contiguous" or not values.dim():
        leaf = values.clone().requires_grad_(wants)
        return leaf, leaf if not wants else leaf.view_as(leaf)
    if layout == "transposed":
        axes = tuple(reversed(range(values.dim())))
        leaf = values.permute(axes).contiguous().requires_grad_(wants)
        return leaf, leaf.permute(axes)
    if layout == "strided":
        whole = values.new_full([2 * extent for extent in values.shape], torch.nan)
        places = tuple(slice(k % 2, None, 2) for k in range(values.dim()))
        whole[places] = values
        leaf = whole.requires_grad_(wants)
        return leaf, leaf[places]
    leaf = values[:1].clone().requires_grad_(wants)
    return leaf, leaf.expand_as(values)


def random_faces(
    batch: int,
    grid: Sequence[int],
    dirs: int,
    units: int = 5,
    cell: str = "graves",
    generator: torch.Generator | None = None,
) -> Faces:
    """Random boundary states in float64 that want gradients; normalisers, called n, are positive."""
    shapes = [(batch, *grid[:d], *grid[d + 1 :], dirs, units) for d in range(len(grid))]
    faces = []
    for name in ("h", *get_cell(cell).states):
        values = [torch.randn(shape, generator=generator, dtype=torch.float64) for shape in shapes]
        faces += [v.abs() + 0.5 if name == "n" else v for v in values]
    return [face.requires_grad_() for face in faces]


def pack(faces: Faces, ndim: int) -> Tensor:
    """The states of a layer as the sweep takes them, (N, F, dirs, 1 + S, n)."""
    axes = [torch.stack(faces[d::ndim], dim=-2).unsqueeze(1).flatten(1, -4) for d in range(ndim)]
    return torch.cat(axes, dim=1)


def unpack(final: Tensor, grid: Sequence[int]) -> Faces:
    """The reverse of `pack`."""
    shapes = [(*grid[:d], *grid[d + 1 :]) for d in range(len(grid))]
    parts = final.split([prod(shape) for shape in shapes], dim=1)
    faces = []
    for s in range(final.shape[-2]):
        for part, shape in zip(parts, shapes, strict=True):
            face = part[..., s, :]
            faces.append(face.unflatten(1, shape) if shape else face.squeeze(1))
    return faces


def to_state(faces: Faces, ndim: int = 2, cell: str = "graves") -> BoundaryState:
    names = ("h", *get_cell(cell).states)
    return BoundaryState(**{name: tuple(faces[k * ndim : (k + 1) * ndim]) for k, name in enumerate(names)})
