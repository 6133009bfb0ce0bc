"""A layer swept tile by tile, whose gradient computes each tile a second time.

Forward visits the tiles of one direction after another and keeps only the states that enter each tile.
Backward visits them in reverse: it sweeps a tile again, now with all that its gradient needs, takes the
gradient of y there and the gradients of the states that left the tile, and passes on the gradients of the
states that entered it. So there is never more than one tile of gates in memory.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from mdlstm_tk.backends.inputs import (
    DIFFERENTIABLE,
    TENSORS,
    SweepInputs,
    boundary_shape,
    check_inputs,
    state_dtype,
)
from mdlstm_tk.backends.run import needs_plain_autograd
from mdlstm_tk.sweep import is_batched, sweep, wants_gradients
from mdlstm_tk.tiling.tiles import Front, Tile, cut


@dataclass(frozen=True)
class TiledSweep:
    """The way in which a layer is swept tile by tile.

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

    def __call__(self, inputs: SweepInputs) -> tuple[Tensor, Tensor]:
        """Sweep one of the stacked layers.

        Returns:
            y (N, *grid, output_size), with directions merged, and the final states.
        """
        check_inputs(inputs)
        if inputs.initial is None:
            zeros = inputs.x.new_zeros(boundary_shape(inputs), dtype=state_dtype(inputs.x))
            inputs = inputs._replace(initial=zeros)
        arguments = self, inputs.without_tensors(), wants_gradients(inputs.tensors)
        y, final = _Checkpointed.apply(*arguments, *inputs.tensors, inputs.sizes)  # type: ignore[no-untyped-call]
        return y, final

    def sweep_tile(self, inputs: SweepInputs, tile: Tile) -> tuple[Tensor, Tensor]:
        """h (N, *tile, 1, n) of one direction and the states that leave the tile.

        Args:
            inputs: those of the tile, except `sizes`, which are those of the whole grid.
            tile: the tile.
        """
        sizes = inputs.sizes
        if sizes is not None:
            starts = sizes.new_tensor([positions.start for positions in tile.ranges])
            sizes = torch.minimum(sizes - starts, sizes.new_tensor(tile.grid))
            inputs = inputs._replace(sizes=sizes.clamp(min=1))
        h, leaving = sweep(inputs, self.backend, self.recompute)
        assert inputs.initial is not None and leaving is not None
        if sizes is None:
            return h, leaving
        # A sample that ends before the tile has nothing in it: its states pass through.
        absent = (sizes < 1).any(dim=1).to(h.device)
        leaving = torch.where(absent.view(-1, 1, 1, 1, 1), inputs.initial, leaving)
        return h.masked_fill(absent.view(-1, *[1] * (h.dim() - 1)), 0), leaving

    def share(self, y: Tensor, direction: int, units: int) -> Tensor:
        """The features of y, or of its gradient, that a direction adds to: a view (…, n)."""
        return y.narrow(-1, direction * units, units) if self.merge == "concat" else y

    def cut_gradients(self, front: Front, tile: Tile, inputs: SweepInputs) -> None:
        """Let no gradient leave a tile through the faces where gradients are cut, of samples that have
        positions on both sides: states of the others only pass through."""
        sizes, (direction,) = inputs.sizes, inputs.directions
        reached = torch.ones(len(inputs.x), dtype=torch.bool, device=inputs.x.device)
        if sizes is not None:
            sizes = sizes.to(inputs.x.device)
            reached = (sizes > sizes.new_tensor([positions.start for positions in tile.ranges])).all(dim=1)
        for d, offset in enumerate(tile.offsets):
            if self.detach_every and offset > 0 and offset % self.detach_every == 0:
                both = reached
                if sizes is not None and direction[d] < 0:  # it comes from where a sample may have ended
                    both = reached & (sizes[:, d] > tile.ranges[d].stop)
                front.clear(tile, d, both)


class _Checkpointed(torch.autograd.Function):
    """`TiledSweep` as one node of autograd."""

    @staticmethod
    def forward(
        ctx: Any, how: TiledSweep, template: SweepInputs, keep: bool, *tensors: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """y and the final states.

        Args:
            how: how tiles are swept.
            template: the inputs without tensors.
            keep: keep the states that enter tiles for backward.
            tensors: the differentiable inputs and sizes.
        """
        inputs = template.with_tensors(tensors)
        x, units, dirs = inputs.x, inputs.units, len(inputs.directions)
        y = x.new_zeros(*x.shape[:-1], units * (dirs if how.merge == "concat" else 1))
        entering_states: list[Tensor] = []
        final = []
        for k in range(dirs):
            one = _select_direction(inputs, k)
            assert one.initial is not None
            front = Front(one.initial, inputs.grid)
            for tile in cut(inputs.grid, how.extents, *one.directions):
                entering = front.read(tile)
                h, leaving = how.sweep_tile(one._replace(x=tile.of(x), initial=entering), tile)
                front.write(tile, leaving)
                how.share(tile.of(y), k, units).add_(h.squeeze(-2))
                if keep:
                    entering_states.append(entering)
            final.append(front.boundary)
        if how.merge == "mean":
            y /= dirs
        ctx.how, ctx.template = how, template
        ctx.save_for_backward(*tensors, *entering_states)
        return y, torch.cat(final, dim=2)

    @staticmethod
    def backward(ctx: Any, dy: Tensor, dfinal: Tensor) -> tuple[Tensor | None, ...]:
        sees_inside = needs_plain_autograd() or is_batched(dy) or is_batched(dfinal)
        if torch.is_grad_enabled() or sees_inside:
            raise RuntimeError(
                "tiling.checkpointed can be differentiated once, not twice (create_graph=True), and not in "
                "forward mode or with batched gradients (vectorize=True, is_grads_batched=True); use "
                "layer(x) there"
            )
        how, count = ctx.how, len(TENSORS)
        saved = ctx.saved_tensors  # read once: torch.utils.checkpoint gives each tensor only once
        inputs, entering_states = ctx.template.with_tensors(saved[:count]), list(saved[count:])
        needs_grad = dict(zip(DIFFERENTIABLE, ctx.needs_input_grad[-count:-1], strict=True))
        grid, units, dirs = inputs.grid, inputs.units, len(inputs.directions)
        sum_dtype = state_dtype(inputs.x)
        sums = {
            name: torch.zeros_like(tensor, dtype=sum_dtype)
            for name, tensor in zip(DIFFERENTIABLE, inputs.tensors, strict=True)
            if needs_grad[name] and name != "initial"
        }
        dinitial = []
        for k in reversed(range(dirs)):
            one = _select_direction(inputs, k)
            front = Front(dfinal[:, :, k : k + 1], grid)
            for tile in reversed(cut(grid, how.extents, *one.directions)):
                dh = how.share(tile.of(dy), k, units).unsqueeze(-2)
                if how.merge == "mean":
                    dh = dh / dirs
                part = one._replace(x=tile.of(inputs.x), initial=entering_states.pop())
                gradients = _tile_gradients(how, part, tile, needs_grad, (dh, front.read(tile)))
                front.write(tile, gradients["initial"])
                how.cut_gradients(front, tile, one)
                for name, total in sums.items():
                    target = tile.of(total) if name == "x" else total[k : k + 1]
                    target.add_(gradients[name])
            dinitial.append(front.boundary)
        results: dict[str, Tensor] = {name: total.to(inputs.x.dtype) for name, total in sums.items()}
        results["initial"] = torch.cat(dinitial[::-1], dim=2)
        return None, None, None, *(results.get(name) for name in TENSORS)


def _tile_gradients(
    how: TiledSweep, inputs: SweepInputs, tile: Tile, needs_grad: dict[str, bool], grads: Sequence[Tensor]
) -> dict[str, Tensor]:
    """Sweep a tile once more, and return the gradients of the inputs that need them, by name.

    Args:
        how: how tiles are swept.
        inputs: of one direction and the tile, except `sizes`, which are those of the whole grid.
        tile: the tile.
        needs_grad: which inputs need gradients; initial states always do.
        grads: the gradients of h there and of the states that leave the tile.
    """
    leaves = {
        name: tensor.detach().requires_grad_()
        for name, tensor in zip(DIFFERENTIABLE, inputs.tensors, strict=True)
        if tensor is not None and (needs_grad[name] or name == "initial")
    }
    fields: Any = leaves
    with torch.enable_grad():
        results = how.sweep_tile(inputs._replace(**fields), tile)
    gradients = torch.autograd.grad(results, list(leaves.values()), grads, materialize_grads=True)
    return dict(zip(leaves, gradients, strict=True))


def _select_direction(inputs: SweepInputs, k: int) -> SweepInputs:
    """The inputs of direction number k alone."""
    one: Any = {
        name: tensor[k : k + 1]
        for name, tensor in zip(DIFFERENTIABLE, inputs.tensors, strict=True)
        if tensor is not None and name not in ("x", "initial")
    }
    assert inputs.initial is not None
    initial = inputs.initial[:, :, k : k + 1]
    return inputs._replace(**one, initial=initial, signs=inputs.directions[k])
