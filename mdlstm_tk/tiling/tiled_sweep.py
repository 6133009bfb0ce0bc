"""A layer swept tile by tile, whose gradient computes each tile a second time.

Forward visits the tiles of one direction after another and keeps only the states that enter each tile.
Backward visits them in reverse: it sweeps a tile again, now with all that its gradient needs, takes the
gradient of y there and the gradients of the states that left the tile, and passes on those of the states
that entered it. So there is never more than one tile of gates in memory.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from mdlstm_tk.backends.faces import Faces, line_counts
from mdlstm_tk.backends.inputs import SweepInputs, state_dtype
from mdlstm_tk.operator import wants_residuals
from mdlstm_tk.state_operator import sweep_states
from mdlstm_tk.tiling.tiles import Front, Tile, cut

TENSORS = 7  # the differentiable tensors of `SweepInputs`


@dataclass(frozen=True)
class TiledSweep:
    """How a layer is swept tile by tile.

    Attributes:
        extents: of a tile, after windows.
        detach_every: the number of tiles between places where gradients are cut, or None.
        merge, backend, recompute: of the layer.
    """

    extents: tuple[int, ...]
    detach_every: int | None
    merge: str
    backend: str
    recompute: bool

    def __call__(self, inputs: SweepInputs, first: Faces | None) -> tuple[Tensor, Faces]:
        """Sweep one of the stacked layers.

        Returns:
            y (N, *grid, output_size), with directions merged, and the final states.
        """
        if first is None:
            x, dirs = inputs.x, len(inputs.weight_ih)
            shape = (x.shape[0], sum(line_counts(inputs.grid)), dirs, inputs.units)
            first = Faces(x.new_zeros(shape), x.new_zeros(shape, dtype=state_dtype(x)))
        tensors = (*inputs.tensors, *first)
        given = (self, inputs[TENSORS:], wants_residuals(tensors))
        y, *last = _Checkpointed.apply(*given, *tensors)  # type: ignore[no-untyped-call]
        return y, Faces(*last)

    def sweep_tile(self, inputs: SweepInputs, first: Faces, tile: Tile) -> tuple[Tensor, Faces]:
        """h (N, *tile, 1, n) of one direction and the states that leave the tile.

        Args:
            inputs: those of the tile, but `sizes` still those of the whole grid.
            first: the states that enter the tile.
            tile: the tile.
        """
        if inputs.sizes is None:
            return sweep_states(inputs, first, self.backend, self.recompute)
        starts = inputs.sizes.new_tensor([of_axis.start for of_axis in tile.ranges])
        sizes = torch.minimum(inputs.sizes - starts, inputs.sizes.new_tensor(tile.grid))
        inputs = inputs._replace(sizes=sizes.clamp(min=1))
        h, last = sweep_states(inputs, first, self.backend, self.recompute)
        # A sample that ends before the tile has nothing in it: its states pass through.
        absent = (sizes < 1).any(dim=1).to(h.device)
        passed = (
            torch.where(absent.view(-1, 1, 1, 1), before, after)
            for before, after in zip(first, last, strict=True)
        )
        return h.masked_fill(absent.view(-1, *[1] * (h.dim() - 1)), 0), Faces(*passed)

    def share(self, y: Tensor, direction: int, units: int) -> Tensor:
        """The features of y, or of its gradient, that a direction adds to: a view (…, n)."""
        return y.narrow(-1, direction * units, units) if self.merge == "concat" else y

    def cut_gradients(self, front: Front, tile: Tile) -> None:
        """Let no gradient leave a tile through the faces where gradients are cut."""
        for d, place in enumerate(tile.place):
            if self.detach_every and place > 0 and place % self.detach_every == 0:
                front.clear(tile, d)


class _Checkpointed(torch.autograd.Function):
    """`TiledSweep` as one node of autograd."""

    @staticmethod
    def forward(
        ctx: Any, how: TiledSweep, rest: tuple[Any, ...], keep: bool, *tensors: Tensor | None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """y and the final states.

        Args:
            how: how tiles are swept.
            rest: sizes, signs and cell of `SweepInputs`.
            keep: whether backward will need the states that enter tiles.
            tensors: the tensors of `SweepInputs` and the initial states.
        """
        inputs, first = _unpack(tensors, rest)
        x, units, dirs = inputs.x, inputs.units, len(inputs.directions)
        y = x.new_zeros(*x.shape[:-1], units * (dirs if how.merge == "concat" else 1))
        kept: list[Tensor] = []
        last = []
        for k in range(dirs):
            own = _of_direction(inputs, k)
            front = Front(_faces_of_direction(first, k), inputs.grid)
            for tile in cut(inputs.grid, how.extents, *own.directions):
                entering = front.read(tile)
                h, leaving = how.sweep_tile(own._replace(x=tile.of(x)), entering, tile)
                front.write(tile, leaving)
                how.share(tile.of(y), k, units).add_(h.squeeze(-2))
                if keep:
                    kept += entering
            last.append(front.faces)
        if how.merge == "mean":
            y /= dirs
        ctx.how, ctx.rest = how, rest
        ctx.save_for_backward(*tensors, *kept)
        return y, *_join_directions(last)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        if torch.is_grad_enabled():
            raise RuntimeError(
                "tiling.checkpointed can be differentiated once, not twice (create_graph=True); "
                "use layer(x) for second derivatives"
            )
        how, (dy, *d_last) = ctx.how, grads
        count = TENSORS + len(Faces._fields)
        tensors, kept = ctx.saved_tensors[:count], list(ctx.saved_tensors[count:])
        needed = ctx.needs_input_grad[-count:]
        inputs, _ = _unpack(tensors, ctx.rest)
        grid, units, dirs = inputs.grid, inputs.units, len(inputs.directions)
        precise = state_dtype(inputs.x)
        dx = torch.zeros_like(inputs.x) if needed[0] else None
        sums = [
            torch.zeros_like(t, dtype=precise) if need else None
            for t, need in zip(tensors[1:TENSORS], needed[1:], strict=False)
        ]
        d_first = []
        for k in reversed(range(dirs)):
            own = _of_direction(inputs, k)
            front = Front(_faces_of_direction(Faces(*d_last), k), grid)
            for tile in reversed(cut(grid, how.extents, *own.directions)):
                entering = Faces(c=kept.pop(), h=kept.pop())
                dh = how.share(tile.of(dy), k, units).unsqueeze(-2)
                if how.merge == "mean":
                    dh = dh / dirs
                d_tile, *d_parameters, dh_entering, dc_entering = _tile_gradients(
                    how, own, tile, entering, needed, [dh, *front.read(tile)]
                )
                front.write(tile, Faces(dh_entering, dc_entering))
                how.cut_gradients(front, tile)
                if dx is not None:
                    tile.of(dx).add_(d_tile)
                for of_all, of_tile in zip(sums, d_parameters, strict=True):
                    if of_all is not None:
                        of_all[k].add_(of_tile[0])
            d_first.append(front.faces)
        of_parameters = [None if g is None else g.to(inputs.x.dtype) for g in sums]
        return None, None, None, dx, *of_parameters, *_join_directions(d_first[::-1])


def _tile_gradients(
    how: TiledSweep,
    inputs: SweepInputs,
    tile: Tile,
    entering: Faces,
    needed: Sequence[bool],
    grads: Sequence[Tensor],
) -> list[Any]:
    """Sweep a tile once more, and return the gradients of x there, of the parameters (None where they are
    not needed) and of the states that enter.

    Args:
        how: how tiles are swept.
        inputs: of one direction and the whole grid.
        tile: the tile.
        entering: the states that enter it.
        needed: of which tensors of `inputs` gradients are needed.
        grads: the gradients of h there and of the states that leave the tile.
    """
    tensors = [tile.of(inputs.x), *inputs.tensors[1:]]
    leaves = [
        None if t is None else t.detach().requires_grad_(need)
        for t, need in zip(tensors, needed, strict=False)
    ]
    faces = Faces(*(face.detach().requires_grad_() for face in entering))
    with torch.enable_grad():
        own: Any = (*leaves, *inputs[TENSORS:])
        h, last = how.sweep_tile(SweepInputs._make(own), faces, tile)
    wanted = [t for t in (*leaves, *faces) if t is not None and t.requires_grad]
    found = iter(torch.autograd.grad((h, *last), wanted, grads, materialize_grads=True))
    return [next(found) if t is not None and t.requires_grad else None for t in (*leaves, *faces)]


def _unpack(tensors: Sequence[Any], rest: tuple[Any, ...]) -> tuple[SweepInputs, Faces]:
    """The inputs and the initial states, from the tensors and from what else belongs to the inputs."""
    return SweepInputs._make((*tensors[:TENSORS], *rest)), Faces(*tensors[TENSORS:])


def _of_direction(inputs: SweepInputs, k: int) -> SweepInputs:
    """The inputs of direction number k alone."""
    x, *parameters = inputs.tensors
    own: Any = [x, *(None if t is None else t[k : k + 1] for t in parameters)]
    signs = inputs.directions[k]
    return SweepInputs._make((*own, inputs.sizes, signs, inputs.cell))


def _faces_of_direction(faces: Faces, k: int) -> Faces:
    """(N, F, dirs, n) → (N, F, 1, n), a view."""
    return Faces(*(face[:, :, k : k + 1] for face in faces))


def _join_directions(faces: Sequence[Faces]) -> tuple[Tensor, Tensor]:
    """h and c of all directions, (N, F, dirs, n)."""
    h, c = zip(*faces, strict=True)
    return torch.cat(h, dim=2), torch.cat(c, dim=2)
