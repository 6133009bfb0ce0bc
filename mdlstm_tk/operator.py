"""`mdlstm::wavefront`, the one torch operator that a layer's whole sweep is.

Autograd, `torch.compile`, autocast and ONNX export all see this single node, whatever computes it.
`sweep` is how the layer calls it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from math import prod
from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad

from mdlstm_tk.backends import reference
from mdlstm_tk.backends.dispatch import choose, engine
from mdlstm_tk.backends.torch import sweep as unrolled
from mdlstm_tk.backends.torch.products import state_dtype
from mdlstm_tk.backends.validation import check_devices, check_inputs
from mdlstm_tk.cells.equations import get_cell
from mdlstm_tk.cells.step import CellParameters
from mdlstm_tk.wavefront import Direction

Gradients = tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]


def sweep(
    x: Tensor,
    weight_ih: Tensor,
    weight_hh: Tensor,
    bias: Tensor | None,
    peephole: Tensor | None,
    norm_weight: Tensor | None,
    norm_bias: Tensor | None,
    sizes: Tensor | None,
    directions: Sequence[Direction],
    cell: str,
    backend: str = "auto",
    recompute: bool = False,
) -> Tensor:
    """Sweep a grid in one or more directions (Graves, Fernández, Schmidhuber 2007, §2).

    Args:
        x: (N, *grid, C) with D grid axes.
        weight_ih: (dirs, G·n, C).
        weight_hh: (dirs, D, G·n, n).
        bias: (dirs, G·n) or None.
        peephole: (dirs, 2D + 1, n) or None, see `CellParameters`.
        norm_weight: (dirs, G + 1, n) or None, see `CellParameters`.
        norm_bias: (dirs, G + 1, n) or None.
        sizes: (N, D) int64 valid extents or None. Outside them h and c are 0.
        directions: dirs tuples of D signs.
        cell: a name in `mdlstm_tk.cells.equations.CELLS`.
        backend: a name in `BACKENDS`, see `choose`. "reference" runs in plain autograd rather than as the
            operator; and so does "unrolled", in place of any other, inside `torch.func` and forward-mode
            differentiation, which cannot see into an operator.
        recompute: keep h and c alone for backward, 2·n numbers a cell and direction rather than
            (G + 2)·n, and compute the gates again from them.

    Returns:
        h (N, *grid, dirs, n).

    Raises:
        InputError: no such cell or backend, or one that cannot run this.
    """
    inputs = (x, weight_ih, weight_hh, bias, peephole, norm_weight, norm_bias)
    chosen = choose(backend, x.device, x.dtype)
    plain = (*inputs[:4], CellParameters(*inputs[4:]), sizes, directions, get_cell(cell))
    if chosen.name == "reference":
        return reference.forward(*plain)
    if _transformed():
        with _without_autocast(x):
            return unrolled.forward(*plain)[0]
    save = torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in inputs)
    signs = [sign for direction in directions for sign in direction]
    output: Tensor = wavefront(*inputs, sizes, signs, cell, save, recompute, chosen.name)[0]
    return output


def _transformed() -> bool:
    """Is this inside `torch.func`, or differentiated forward? The operator would stop the one with an error
    about itself, and be a constant to the other."""
    return torch._C._are_functorch_transforms_active() or forward_ad._current_level >= 0


@contextmanager
def _without_autocast(x: Tensor) -> Iterator[None]:
    """The inputs are in autocast's dtype already, and what is float32 inside a sweep is meant to be."""
    kind = x.device.type
    if torch.amp.is_autocast_available(kind) and torch.is_autocast_enabled(kind):
        with torch.autocast(kind, enabled=False):
            yield
    else:
        yield


def unflatten_directions(signs: Sequence[int], ndim: int) -> list[Direction]:
    """The operator's flat list of signs as tuples again."""
    return [tuple(signs[k : k + ndim]) for k in range(0, len(signs), ndim)]


@torch.library.custom_op("mdlstm::wavefront", mutates_args=())
def wavefront(
    x: Tensor,
    weight_ih: Tensor,
    weight_hh: Tensor,
    bias: Tensor | None,
    peephole: Tensor | None,
    norm_weight: Tensor | None,
    norm_bias: Tensor | None,
    sizes: Tensor | None,
    directions: Sequence[int],
    cell: str,
    save: bool,
    recompute: bool,
    backend: str,
) -> tuple[Tensor, Tensor, Tensor]:
    """The operator: `sweep`'s output and, if `save`, gates and c as the backend's backward wants them; c
    alone if also `recompute`."""
    inputs = (x, weight_ih, weight_hh, bias, peephole, norm_weight, norm_bias)
    check_inputs(inputs, sizes, directions)
    parameters = CellParameters(peephole, norm_weight, norm_bias)
    ways = unflatten_directions(directions, weight_hh.shape[1])
    with _without_autocast(x):
        output, gates, c = engine(backend, x.device).forward(
            x, weight_ih, weight_hh, bias, parameters, sizes, ways, get_cell(cell), save, recompute
        )
    return output.contiguous(), gates, c


@wavefront.register_fake
def _(
    x: Tensor,
    weight_ih: Tensor,
    weight_hh: Tensor,
    bias: Tensor | None,
    peephole: Tensor | None,
    norm_weight: Tensor | None,
    norm_bias: Tensor | None,
    sizes: Tensor | None,
    directions: Sequence[int],
    cell: str,
    save: bool,
    recompute: bool,
    backend: str,
) -> tuple[Tensor, Tensor, Tensor]:
    check_devices((x, weight_ih, weight_hh, bias, peephole, norm_weight, norm_bias), sizes)
    dirs, _, width, units = weight_hh.shape
    output = x.new_empty(*x.shape[:-1], dirs, units)
    if not save:
        return output, x.new_empty(0), x.new_empty(0)
    rows, dtype = prod(x.shape[:-1]), state_dtype(x)  # `numel` would compile anew for each shape
    gates = x.new_empty(0) if recompute else x.new_empty(dirs, rows, width, dtype=dtype)
    return output, gates, x.new_empty(dirs, rows, units, dtype=dtype)


@torch.library.custom_op("mdlstm::wavefront_backward", mutates_args=())
def wavefront_backward(
    grad: Tensor,
    output: Tensor,
    gates: Tensor,
    c: Tensor,
    x: Tensor,
    weight_ih: Tensor,
    weight_hh: Tensor,
    bias: Tensor | None,
    peephole: Tensor | None,
    norm_weight: Tensor | None,
    norm_bias: Tensor | None,
    sizes: Tensor | None,
    directions: Sequence[int],
    cell: str,
    backend: str,
    wants_dx: bool,
) -> Gradients:
    """The gradients of `wavefront`'s first seven inputs; empty for those that are None, and for x unless
    `wants_dx`."""
    inputs = (x, weight_ih, weight_hh, bias, peephole, norm_weight, norm_bias)
    check_inputs(inputs, sizes, directions)
    parameters = CellParameters(peephole, norm_weight, norm_bias)
    ways = unflatten_directions(directions, weight_hh.shape[1])
    of_sweep = (grad, output, gates, c, x, weight_ih, weight_hh, bias, parameters, sizes, ways)
    with _without_autocast(x):
        gradients = engine(backend, x.device).backward(*of_sweep, get_cell(cell), wants_dx)
    return tuple(grad.new_empty(0) if g is None else g.contiguous() for g in gradients)  # type: ignore[return-value]


@wavefront_backward.register_fake
def _(
    grad: Tensor,
    output: Tensor,
    gates: Tensor,
    c: Tensor,
    x: Tensor,
    weight_ih: Tensor,
    weight_hh: Tensor,
    bias: Tensor | None,
    peephole: Tensor | None,
    norm_weight: Tensor | None,
    norm_bias: Tensor | None,
    sizes: Tensor | None,
    directions: Sequence[int],
    cell: str,
    backend: str,
    wants_dx: bool,
) -> Gradients:
    inputs = (x if wants_dx else None, weight_ih, weight_hh, bias, peephole, norm_weight, norm_bias)
    return tuple(grad.new_empty(0) if t is None else t.new_empty(t.shape) for t in inputs)  # type: ignore[return-value]


def _save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor, Tensor]) -> None:
    *tensors, ctx.directions, ctx.cell, ctx.saved, ctx.recompute, ctx.backend = inputs
    ctx.mark_non_differentiable(*output[1:])
    ctx.set_materialize_grads(False)  # the gates' would be as big as they are
    ctx.save_for_backward(*output, *tensors)


def _backward(ctx: Any, grad: Tensor | None, *_: Any) -> tuple[Tensor | None, ...]:
    if grad is None:
        return (None,) * len(ctx.needs_input_grad)
    output, gates, c, *inputs = ctx.saved_tensors
    arguments = (*inputs, ctx.directions, ctx.cell)
    if not ctx.saved:  # a graph that was captured where no gradient was wanted
        output, gates, c = wavefront(*arguments, True, ctx.recompute, ctx.backend)
    wants_dx = ctx.needs_input_grad[0]
    gradients = wavefront_backward(grad.contiguous(), output, gates, c, *arguments, ctx.backend, wants_dx)
    given = (g if wanted else None for g, wanted in zip(gradients, ctx.needs_input_grad, strict=False))
    return (*given, None, None, None, None, None, None)


def _save_backward(ctx: Any, inputs: tuple[Any, ...], output: Gradients) -> None:
    grad, _, _, _, *tensors, ctx.directions, ctx.cell, _, ctx.wants_dx = inputs
    ctx.save_for_backward(grad, *tensors)


def _double_backward(ctx: Any, *upstream: Any) -> tuple[Tensor | None, ...]:
    """Second derivatives: differentiate the sweep twice with plain autograd. There are no third ones."""
    if torch.is_grad_enabled():
        raise RuntimeError(
            "mdlstm::wavefront can be differentiated twice, not three times; "
            "use MDLSTM(..., backend='reference') for higher derivatives"
        )
    *saved, sizes = ctx.saved_tensors
    dtype = state_dtype(saved[0])
    exact: list[Any] = [None if t is None else t.detach().to(dtype) for t in saved]
    grad, *inputs = exact
    leaves = [t.requires_grad_() for t in (grad, *inputs) if t is not None]
    with torch.enable_grad(), _without_autocast(grad):
        x, weight_ih, weight_hh, bias, *extra = inputs
        ways = unflatten_directions(ctx.directions, weight_hh.shape[1])
        output, _, _ = unrolled.forward(
            x, weight_ih, weight_hh, bias, CellParameters(*extra), sizes, ways, get_cell(ctx.cell)
        )
        first = torch.autograd.grad(output, leaves[1:], grad, create_graph=True, materialize_grads=True)
        given = iter(first)
        pairs = [(next(given), u) for t, u in zip(inputs, upstream, strict=True) if t is not None]
        pairs = [(g, u) for g, u in pairs[0 if ctx.wants_dx else 1 :] if u is not None]
        second = torch.autograd.grad(
            [g for g, _ in pairs], leaves, [u.to(dtype) for _, u in pairs], materialize_grads=True
        )
    rounded = iter([gradient.to(saved[0].dtype) for gradient in second])
    grad_grad = next(rounded)
    given_back = (None if t is None else next(rounded) for t in inputs)
    return (grad_grad, None, None, None, *given_back, None, None, None, None, None)


wavefront.register_autograd(_backward, setup_context=_save)
wavefront_backward.register_autograd(_double_backward, setup_context=_save_backward)
