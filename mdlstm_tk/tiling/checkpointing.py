"""`checkpointed`: a layer over a grid whose gates do not fit into memory, with its exact gradient."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, overload

import torch
from torch import Tensor

from mdlstm_tk._util import arguments
from mdlstm_tk._util.masking import Sizes
from mdlstm_tk._util.tensor_classes import has_hooks
from mdlstm_tk._util.text import one_line
from mdlstm_tk.backends.run import needs_plain_autograd
from mdlstm_tk.errors import InputError
from mdlstm_tk.layer import MDLSTM
from mdlstm_tk.states import BoundaryState, State
from mdlstm_tk.tiling.tiled_sweep import TiledSweep

Extents = int | Sequence[int]


@overload
def checkpointed(
    layer: MDLSTM,
    x: Tensor,
    tile: Extents = ...,
    sizes: Sizes | None = ...,
    initial_state: Sequence[BoundaryState] | None = ...,
    return_state: Literal[False] = ...,
    detach_every: int | None = ...,
) -> Tensor: ...
@overload
def checkpointed(
    layer: MDLSTM,
    x: Tensor,
    tile: Extents = ...,
    sizes: Sizes | None = ...,
    initial_state: Sequence[BoundaryState] | None = ...,
    *,
    return_state: Literal[True],
    detach_every: int | None = ...,
) -> tuple[Tensor, State]: ...
def checkpointed(
    layer: MDLSTM,
    x: Tensor,
    tile: Extents = (256, 256),
    sizes: Sizes | None = None,
    initial_state: Sequence[BoundaryState] | None = None,
    return_state: bool = False,
    detach_every: int | None = None,
) -> Tensor | tuple[Tensor, State]:
    """Run a layer tile by tile: the result and the gradient of `layer(x)`, with the memory of one tile.

        >>> layer = MDLSTM(3, 16, directions="all")
        >>> y = tiling.checkpointed(layer, torch.rand(1, 600, 800, 3), tile=128)
        >>> y.sum().backward()

    A plain sweep keeps the gates and c of every position for backward, (G + 1)·n numbers for each
    direction. This one keeps only the states that enter tiles, 2·n numbers for each line of positions of a
    tile, and backward sweeps each tile again. So beside x, y and their gradients, it needs the memory of
    those states and of a plain sweep over one tile in one direction. `torch.export`, and with it the export
    to ONNX, gets the plain sweep, whose gradients are not cut; `torch.fx` cannot record the call.

    Directions run one after another, since each starts from a corner of its own. Stacked layers do, too,
    and what each of them passes to the next stays in memory.

    Args:
        layer: any layer. Its parameters, `backend`, `recompute` and dropout count as in `layer(x)`.
        x: as for `layer(x)`.
        tile: the extents of a tile in positions of x, or one for all axes; multiples of the layer's
            `window`. They need not divide the grid, and may be larger.
        sizes, initial_state, return_state: as for `layer(x)`.
        detach_every: k, for truncated back-propagation. Tiles are counted along each axis from 0, beginning
            at the corner that a direction starts from. Between tiles m - 1 and m states pass always, but
            gradients pass only if m is no multiple of k: blocks of k tiles along each axis are
            differentiated as a whole, and the states that enter a block count as given. Gradients of
            `initial_state`, of final states and between stacked layers are not cut. y is the same.

    Returns:
        As `layer(x)`: y, or with `return_state` a pair of y and the final states.

    Raises:
        InputError: `layer` is no `MDLSTM`, or has a forward of its own or hooks, which only `layer(x)`
            runs; `tile` or `detach_every` does not fit; a transform of `torch.func` or forward-mode
            differentiation is active; or as for `layer(x)`.
        RuntimeError: it is differentiated twice, or with batched gradients.
    """
    if not isinstance(layer, MDLSTM):
        raise InputError(
            f"layer must be an MDLSTM, got {type(layer).__name__}; "
            "in a network, call checkpointed in place of each of its MDLSTM layers"
        )
    if layer._has_own_forward():
        raise InputError(
            f"layer is of the class {type(layer).__name__} with a forward of its own, which checkpointed "
            "does not run; use layer(x), or call checkpointed in that forward, for an MDLSTM"
        )
    if has_hooks(layer):
        raise InputError("layer has hooks, which checkpointed does not run; remove them, or use layer(x)")
    if needs_plain_autograd():
        raise InputError(
            "checkpointed runs neither inside transforms of torch.func nor in forward-mode "
            "differentiation; use layer(x) there"
        )
    extents = arguments.extents("tile", tile, layer.ndim)
    if any(extent % window for extent, window in zip(extents, layer.window, strict=True)):
        rounded = tuple(-(-e // w) * w for e, w in zip(extents, layer.window, strict=True))
        raise InputError(
            f"tile must be a multiple of the layer's window {layer.window}, "
            f"got {one_line(tile)}; use {rounded}"
        )
    if detach_every is not None:
        detach_every = arguments.positive("detach_every", detach_every)
    if torch.compiler.is_exporting():  # one node for each layer, as in every saved graph
        return layer._run(x, sizes, initial_state, return_state, layer._sweep)
    sweep = TiledSweep(
        tuple(extent // window for extent, window in zip(extents, layer.window, strict=True)),
        detach_every,
        layer.merge,
        layer.backend,
        layer.recompute,
    )
    return layer._run(x, sizes, initial_state, return_state, sweep)
