"""`mdlstm::wavefront`, the one torch operator that a layer's whole sweep is.

Autograd, `torch.compile`, autocast and ONNX export all see this single node, whatever computes it.
`sweep` is how the layer calls it.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from types import ModuleType
from typing import Any, NamedTuple

import torch
from torch import Tensor

from mdlstm_tk.backends import reference, unrolled
from mdlstm_tk.backends.step import CellParameters
from mdlstm_tk.cells import get_cell
from mdlstm_tk.errors import InputError
from mdlstm_tk.wavefront import Direction

BACKENDS = ("auto", "fused", "unrolled", "reference")
FUSED_DTYPES = (torch.float32, torch.float64)


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
        cell: a name in `mdlstm_tk.cells.CELLS`.
        backend: a name in `BACKENDS`, see `choose`; "reference" runs in plain autograd rather than as the
            operator.
        recompute: keep h and c alone for backward, 2·n numbers a cell and direction rather than
            (G + 2)·n, and compute the gates again from them.

    Returns:
        h (N, *grid, dirs, n).

    Raises:
        InputError: no such cell or backend, or one that cannot run this.
    """
    inputs = (x, weight_ih, weight_hh, bias, peephole, norm_weight, norm_bias)
    chosen = choose(backend, x.device, x.dtype)
    if chosen.name == "reference":
        parameters = CellParameters(*inputs[4:])
        return reference.forward(*inputs[:4], parameters, sizes, directions, get_cell(cell))
    save = torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in inputs)
    signs = [sign for direction in directions for sign in direction]
    output: Tensor = wavefront(*inputs, sizes, signs, cell, save, recompute, chosen.name)[0]
    return output


def check_backend(backend: str) -> str:
    """`backend`, if there is one of that name.

    Raises:
        InputError: there is none.
    """
    if backend not in BACKENDS:
        raise InputError(f"backend must be one of {', '.join(BACKENDS)}, got {backend!r}")
    return backend


class Choice(NamedTuple):
    """The backend that runs, "fused", "unrolled" or "reference", and why."""

    name: str
    reason: str


def choose(backend: str, device: torch.device, dtype: torch.dtype) -> Choice:
    """The backend that `backend` stands for: "auto" takes "fused" where that can run, else "unrolled".

    Raises:
        InputError: there is none of that name, or "fused" cannot run this.
    """
    if check_backend(backend) in ("unrolled", "reference"):
        return Choice(backend, "as asked")
    hindrance = _why_not_fused(device, dtype)
    if not hindrance:
        return Choice("fused", "compiled by Numba for the CPU" if backend == "auto" else "as asked")
    if backend == "fused":
        raise InputError(f"backend='fused' cannot run this: {hindrance}; use backend='auto'")
    return Choice("unrolled", hindrance)


def _why_not_fused(device: torch.device, dtype: torch.dtype) -> str:
    """What keeps the fused backend from running, or ""."""
    if device.type != "cpu":
        return f"fused kernels are for the CPU, and x is on {device.type}"
    if dtype not in FUSED_DTYPES:
        return f"fused kernels are for float32 and float64, and x is {str(dtype).removeprefix('torch.')}"
    return str(_numba_problem())


@torch.compiler.assume_constant_result  # type: ignore[untyped-decorator]
def _numba_problem() -> str:
    """Why Numba cannot be imported, or ""."""
    return _import_numba()


@cache
def _import_numba() -> str:
    try:
        import numba  # noqa: F401
    except ImportError as error:  # not there, or not for this NumPy
        return f"numba cannot be imported ({error})"
    return ""


def _engine(backend: str) -> ModuleType:
    """The module that has `forward` and `backward`."""
    if backend == "unrolled":
        return unrolled
    from mdlstm_tk.backends import fused_cpu  # imports Numba

    return fused_cpu


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
    parameters = CellParameters(peephole, norm_weight, norm_bias)
    ways = unflatten_directions(directions, weight_hh.shape[1])
    output, gates, c = _engine(backend).forward(
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
    dirs, _, width, units = weight_hh.shape
    output = x.new_empty(*x.shape[:-1], dirs, units)
    if not save:
        return output, x.new_empty(0), x.new_empty(0)
    rows, dtype = x.shape[:-1].numel(), unrolled.state_dtype(x)
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
) -> list[Tensor]:
    """The gradients of `wavefront`'s first seven inputs; empty for those that are None, and for x unless
    `wants_dx`."""
    parameters = CellParameters(peephole, norm_weight, norm_bias)
    ways = unflatten_directions(directions, weight_hh.shape[1])
    gradients = _engine(backend).backward(
        grad,
        output,
        gates,
        c,
        x,
        weight_ih,
        weight_hh,
        bias,
        parameters,
        sizes,
        ways,
        get_cell(cell),
        wants_dx,
    )
    return [grad.new_empty(0) if g is None else g.contiguous() for g in gradients]


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
) -> list[Tensor]:
    inputs = (x if wants_dx else None, weight_ih, weight_hh, bias, peephole, norm_weight, norm_bias)
    return [grad.new_empty(0) if t is None else t.new_empty(t.shape) for t in inputs]


def _save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor, Tensor]) -> None:
    *tensors, ctx.directions, ctx.cell, _, _, ctx.backend = inputs
    ctx.mark_non_differentiable(*output[1:])
    ctx.set_materialize_grads(False)  # the gates' would be as big as they are
    ctx.save_for_backward(*output, *tensors)


def _backward(ctx: Any, grad: Tensor | None, *_: Any) -> tuple[Tensor | None, ...]:
    if grad is None:
        return (None,) * len(ctx.needs_input_grad)
    *saved, sizes = ctx.saved_tensors
    wants_dx = ctx.needs_input_grad[0]
    gradients = wavefront_backward(
        grad.contiguous(), *saved, sizes, ctx.directions, ctx.cell, ctx.backend, wants_dx
    )
    given = (g if wanted else None for g, wanted in zip(gradients, ctx.needs_input_grad, strict=False))
    return (*given, None, None, None, None, None, None)


def _save_backward(ctx: Any, inputs: tuple[Any, ...], output: list[Tensor]) -> None:
    grad, _, _, _, *tensors, ctx.directions, ctx.cell, _, ctx.wants_dx = inputs
    ctx.save_for_backward(grad, *tensors)


def _double_backward(ctx: Any, upstream: list[Tensor | None]) -> tuple[Tensor | None, ...]:
    """Second derivatives: differentiate the sweep twice with plain autograd. There are no third ones."""
    if torch.is_grad_enabled():
        raise RuntimeError(
            "mdlstm::wavefront can be differentiated twice, not three times; "
            "use MDLSTM(..., backend='reference') for higher derivatives"
        )
    saved: list[Any] = [None if t is None else t.detach() for t in ctx.saved_tensors]
    grad, *inputs, sizes = saved
    leaves = [t.requires_grad_() for t in (grad, *inputs) if t is not None]
    with torch.enable_grad():
        x, weight_ih, weight_hh, bias, *extra = inputs
        ways = unflatten_directions(ctx.directions, weight_hh.shape[1])
        output, _, _ = unrolled.forward(
            x, weight_ih, weight_hh, bias, CellParameters(*extra), sizes, ways, get_cell(ctx.cell)
        )
        first = torch.autograd.grad(output, leaves[1:], grad, create_graph=True, materialize_grads=True)
        given = iter(first)
        pairs = [(next(given), u) for t, u in zip(inputs, upstream, strict=True) if t is not None]
        pairs = [(g, u) for g, u in pairs[0 if ctx.wants_dx else 1 :] if u is not None]
        second = iter(
            torch.autograd.grad(
                [g for g, _ in pairs], leaves, [u for _, u in pairs], materialize_grads=True
            )
        )
    grad_grad = next(second)
    given_back = (None if t is None else next(second) for t in inputs)
    return (grad_grad, None, None, None, *given_back, None, None, None, None, None)


wavefront.register_autograd(_backward, setup_context=_save)
wavefront_backward.register_autograd(_double_backward, setup_context=_save_backward)
