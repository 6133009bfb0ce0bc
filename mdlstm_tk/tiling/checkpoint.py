"""`checkpointed`: a layer over a grid whose gates do not fit into memory, with its exact gradient.

Forward visits the tiles of one direction after another and keeps only the states that enter each tile.
Backward visits them in reverse: it sweeps a tile again, now with all that its gradient needs, takes the
gradient of y there and the gradients of the states that left the tile, and passes on the gradients of the
states that entered it. So there is never more than one tile of gates in memory.

A tile comes after its predecessors, one tile back along each axis. The states between the tiles that were
visited and the others are a *front*, (N, F, 1, 1 + S, n): on each line of positions the states that enter
the next tile of that line. One hyperplane for each axis holds them, however many tiles there are.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import product
from typing import Any, NamedTuple

import torch
from torch import Tensor

from mdlstm_tk._util.masking import Sizes
from mdlstm_tk.errors import InputError
from mdlstm_tk.inputs import DIFFERENTIABLE, TENSORS, SweepInputs, boundary_shape, check_inputs, state_dtype
from mdlstm_tk.layer import MDLSTM
from mdlstm_tk.states import BoundaryState, line_counts, split_faces
from mdlstm_tk.sweep import sweep

Tile = tuple[slice, ...]  # of each axis the positions


def checkpointed(
    layer: MDLSTM,
    x: Tensor,
    tile: int | Sequence[int] = (256, 256),
    sizes: Sizes | None = None,
    initial_state: Sequence[BoundaryState] | None = None,
    return_state: bool = False,
) -> Any:
    """Run a layer tile by tile: the result and the gradient of `layer(x)`, with the memory of one tile.

        >>> layer = MDLSTM(3, 16, directions="all")
        >>> y = tiling.checkpointed(layer, torch.rand(1, 600, 800, 3), tile=128)
        >>> y.sum().backward()

    A plain sweep keeps the gates and c of every position for backward, (G + 1)·n numbers for each
    direction. This one keeps only the states that enter tiles, 2·n numbers for each line of positions of a
    tile, and backward sweeps each tile again. So beside x, y and their gradients, it needs the memory of
    those states and of a plain sweep over one tile in one direction. `torch.export`, and with it the export
    to ONNX, gets the plain sweep.

    Directions run one after another, since each starts from a corner of its own. Stacked layers do, too,
    and what each of them passes to the next stays in memory.

    Args:
        layer: any layer. Its parameters, `backend`, `recompute` and dropout count as in `layer(x)`; its
            hooks, and the forward of a class of its own, do not run.
        x: as for `layer(x)`.
        tile: the extents of a tile in positions of x, or one for all axes; multiples of the layer's
            `window`. They need not divide the grid, and may be larger.
        sizes, initial_state, return_state: as for `layer(x)`.

    Returns:
        As `layer(x)`: y, or with `return_state` a pair of y and the final states.

    Raises:
        InputError: `tile` is no multiple of the window, or as for `layer(x)`.
        RuntimeError: it is differentiated twice, or by a transform of `torch.func`.
    """
    if type(layer).forward is not MDLSTM.forward or layer._forward_hooks or layer._forward_pre_hooks:
        raise InputError(
            "checkpointed runs neither hooks nor a forward of a layer's own class; use layer(x)"
        )
    extents = (tile,) * layer.ndim if isinstance(tile, int) else tuple(tile)
    pairs = list(zip(extents, layer.window, strict=True))
    if any(extent < 1 or extent % window for extent, window in pairs):
        raise InputError(f"tile must be a multiple of the layer's window {layer.window}, got {tile}")
    if torch.compiler.is_exporting():  # one node for each layer, as in every saved graph
        return layer._run(x, sizes, initial_state, return_state, layer._sweep)
    way = _Way(
        tuple(extent // window for extent, window in pairs), layer.merge, layer.backend, layer.recompute
    )

    def sweep_layer(inputs: SweepInputs) -> tuple[Tensor, Tensor]:
        check_inputs(inputs)
        if inputs.initial is None:
            zeros = inputs.x.new_zeros(boundary_shape(inputs), dtype=state_dtype(inputs.x))
            inputs = inputs._replace(initial=zeros)
        keep = torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in inputs.tensors)
        return _Checkpointed.apply(way, keep, *inputs)  # type: ignore[no-any-return,no-untyped-call]

    return layer._run(x, sizes, initial_state, return_state, sweep_layer)


class _Way(NamedTuple):
    """How a layer is swept: the extents of a tile after windows, and what forward found in the layer."""

    extents: tuple[int, ...]
    merge: str
    backend: str
    recompute: bool


def _tiles(inputs: SweepInputs, extents: Sequence[int]) -> list[Tile]:
    """The tiles of a grid in an order in which a sweep in one direction can visit them. Those at the far
    ends are smaller where the extents do not divide the grid."""
    axes = []
    for total, extent, sign in zip(inputs.grid, extents, inputs.signs, strict=True):
        ranges = [slice(start, min(start + extent, total)) for start in range(0, total, extent)]
        axes.append(ranges[::sign])
    return list(product(*axes))


def _of(tensor: Tensor, tile: Tile) -> Tensor:
    """The part of a tensor (N, *grid, …) that is a tile, a view."""
    return tensor[(slice(None), *tile)]


def _entering(front: list[Tensor], tile: Tile) -> Tensor:
    """The part of a front, one tensor for each axis, that enters a tile or leaves it."""
    parts = [_of(face, (*tile[:d], *tile[d + 1 :])) for d, face in enumerate(front)]
    return torch.cat([part.unsqueeze(1).flatten(1, -4) for part in parts], dim=1)


def _leave(front: list[Tensor], tile: Tile, boundary: Tensor) -> None:
    """Overwrite this part of a front."""
    counts = line_counts([positions.stop - positions.start for positions in tile])
    for d, part in enumerate(boundary.split(counts, dim=1)):
        target = _of(front[d], (*tile[:d], *tile[d + 1 :]))
        target.copy_(part.reshape(target.shape))


def _one_direction(inputs: SweepInputs) -> Iterator[SweepInputs]:
    """The inputs of each direction alone, without initial states."""
    for k, signs in enumerate(inputs.directions):
        x, *parameters, _ = inputs.tensors
        one = [None if parameter is None else parameter[k : k + 1] for parameter in parameters]
        yield inputs._replace(signs=signs).with_tensors([x, *one, None])


def _sweep_tile(way: _Way, inputs: SweepInputs, tile: Tile, entering: Tensor) -> tuple[Tensor, Tensor]:
    """h (N, *tile, 1, n) of one direction and the states that leave the tile. `inputs` are those of the
    tile, except `sizes`, which are those of the whole grid."""
    sizes = inputs.sizes
    if sizes is not None:
        starts = sizes.new_tensor([positions.start for positions in tile])
        sizes = torch.minimum(sizes - starts, sizes.new_tensor(inputs.grid))
        inputs = inputs._replace(sizes=sizes.clamp(min=1))
    h, leaving = sweep(inputs._replace(initial=entering), way.backend, way.recompute)
    assert leaving is not None
    if sizes is None:
        return h, leaving
    # A sample that ends before the tile has nothing in it: its states pass through.
    absent = (sizes < 1).any(dim=1).to(h.device)
    leaving = torch.where(absent.view(-1, 1, 1, 1, 1), entering, leaving)
    return h.masked_fill(absent.view(-1, *[1] * (h.dim() - 1)), 0), leaving


class _Checkpointed(torch.autograd.Function):
    """A sweep in tiles as one node of autograd."""

    @staticmethod
    def forward(ctx: Any, way: _Way, keep: bool, *fields: Any) -> tuple[Tensor, Tensor]:
        """y (N, *grid, output_size) and the final states, from `SweepInputs` with initial states; `keep`
        those that enter tiles for backward."""
        inputs = SweepInputs(*fields)
        assert inputs.initial is not None
        x, units, dirs = inputs.x, inputs.units, len(inputs.directions)
        y = x.new_zeros(*x.shape[:-1], units * (dirs if way.merge == "concat" else 1))
        final, kept = inputs.initial.clone(memory_format=torch.contiguous_format), []
        for k, one in enumerate(_one_direction(inputs)):
            front = split_faces(final[:, :, k : k + 1], inputs.grid)
            for tile in _tiles(one, way.extents):
                entering = _entering(front, tile)
                h, leaving = _sweep_tile(way, one._replace(x=_of(x, tile)), tile, entering)
                _leave(front, tile, leaving)
                _share(way, _of(y, tile), k, units).add_(h.squeeze(-2))
                if keep:
                    kept.append(entering)
        if way.merge == "mean":
            y /= dirs
        ctx.way, ctx.others = way, fields[len(TENSORS) :]
        ctx.save_for_backward(*fields[: len(TENSORS)], *kept)
        return y, final

    @staticmethod
    def backward(ctx: Any, dy: Tensor, dfinal: Tensor) -> tuple[Tensor | None, ...]:
        if torch.is_grad_enabled():
            raise RuntimeError(
                "tiling.checkpointed can be differentiated once, not twice (create_graph); use layer(x)"
            )
        way, saved = ctx.way, ctx.saved_tensors  # read once: torch.utils.checkpoint gives each only once
        inputs, kept = SweepInputs(*saved[: len(TENSORS)], *ctx.others), list(saved[len(TENSORS) :])
        needs = dict(zip(DIFFERENTIABLE, ctx.needs_input_grad[2:], strict=False))
        units, dirs = inputs.units, len(inputs.directions)
        sums = {
            name: torch.zeros_like(tensor, dtype=state_dtype(inputs.x))
            for name, tensor in zip(DIFFERENTIABLE, inputs.tensors, strict=True)
            if tensor is not None and needs[name] and name != "initial"
        }
        dinitial = dfinal.clone(memory_format=torch.contiguous_format)
        for k, one in reversed(list(enumerate(_one_direction(inputs)))):
            front = split_faces(dinitial[:, :, k : k + 1], inputs.grid)
            for tile in reversed(_tiles(one, way.extents)):
                dh = _share(way, _of(dy, tile), k, units).unsqueeze(-2)
                dh = dh / dirs if way.merge == "mean" else dh
                part = one._replace(x=_of(inputs.x, tile), initial=kept.pop())
                named = zip(DIFFERENTIABLE, part.tensors, strict=True)
                leaves = {
                    name: tensor.detach().requires_grad_()
                    for name, tensor in named
                    if tensor is not None and (needs[name] or name == "initial")
                }
                with torch.enable_grad():  # the tile once more
                    again: Any = part._replace(**leaves)  # type: ignore[arg-type]
                    outputs = _sweep_tile(way, again, tile, again.initial)
                found = torch.autograd.grad(
                    outputs, list(leaves.values()), (dh, _entering(front, tile)), materialize_grads=True
                )
                gradients = dict(zip(leaves, found, strict=True))
                _leave(front, tile, gradients["initial"])
                for name, total in sums.items():
                    target = _of(total, tile) if name == "x" else total[k : k + 1]
                    target.add_(gradients[name])
        results = {name: total.to(inputs.x.dtype) for name, total in sums.items()} | {"initial": dinitial}
        return None, None, *(results.get(name) for name in SweepInputs._fields)


def _share(way: _Way, y: Tensor, direction: int, units: int) -> Tensor:
    """The features of y, or of its gradient, that a direction adds to: a view (…, n)."""
    return y.narrow(-1, direction * units, units) if way.merge == "concat" else y
