"""`mdlstm::wavefront`, the torch operator that runs a layer's whole sweep.

Autograd, `torch.compile`, autocast and ONNX export all see this single node, whichever backend computes it.
The layer calls it through `sweep`.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from math import prod
from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad

from mdlstm_tk.backends import reference
from mdlstm_tk.backends.dispatch import engine
from mdlstm_tk.backends.inputs import SweepInputs, cell_traits, check_devices, check_inputs, state_dtype
from mdlstm_tk.backends.torch import sweep as torch_sweep

__all__ = ["SweepInputs", "sweep", "wavefront", "wavefront_backward"]

_INPUTS = (
    "Tensor x, Tensor weight_ih, Tensor? weight_hh, Tensor? bias, Tensor? peephole, Tensor? norm_weight, "
    "Tensor? norm_bias, Tensor? sizes, int[] directions, str cell"
)
torch.library.define(
    "mdlstm::wavefront",
    f"({_INPUTS}, bool save, bool recompute, str backend) -> (Tensor, Tensor, Tensor)",
)
torch.library.define(
    "mdlstm::wavefront_backward",
    f"(Tensor grad, Tensor output, Tensor gates, Tensor c, {_INPUTS}, str backend, bool wants_dx) "
    "-> (Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor)",
)
wavefront = torch.ops.mdlstm.wavefront.default
wavefront_backward = torch.ops.mdlstm.wavefront_backward.default
TENSORS = 8  # inputs of the operator that are tensors: seven differentiable ones, then sizes


def sweep(inputs: SweepInputs, backend: str = "auto", recompute: bool = False) -> Tensor:
    """Sweep a grid in one or more directions (Graves, Fernández, Schmidhuber 2007, §2).

    Args:
        inputs: x, the parameters, sizes, directions and the cell.
        backend: a name in `mdlstm_tk.backends.dispatch.BACKENDS`. "reference" runs in plain autograd
            instead of as the operator. Inside `torch.func` and forward-mode differentiation, which cannot
            see into an operator, "torch" runs in plain autograd, whatever was asked for.
        recompute: keep only h and c for backward, 2·n numbers per position and direction instead of
            (G + 2)·n, and compute the gates again from them.

    Returns:
        h (N, *grid, dirs, n).

    Raises:
        InputError: the inputs do not fit each other, or the backend cannot run them.
    """
    if backend == "reference":
        return reference.forward(inputs)
    if torch._C._are_functorch_transforms_active() or forward_ad._current_level >= 0:
        with _without_autocast(inputs.x):
            return torch_sweep.forward(inputs)[0]
    save = torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in inputs.tensors)
    output: Tensor = wavefront(*inputs, save, recompute, backend)[0]
    return output


def _without_autocast(x: Tensor) -> AbstractContextManager[Any]:
    """Turn autocast off: the inputs have its dtype already, and float32 inside a sweep is intended."""
    device = x.device.type
    if torch.amp.is_autocast_available(device) and torch.is_autocast_enabled(device):
        return torch.autocast(device, enabled=False)
    return nullcontext()


def _wavefront(*arguments: Any) -> tuple[Tensor, Tensor, Tensor]:
    """The operator: h and, if `save`, gates and c as the backend's backward wants them; only c if also
    `recompute`."""
    *tensors, directions, cell, save, recompute, backend = arguments
    inputs = SweepInputs._make((*tensors, tuple(directions), cell))
    check_inputs(inputs)
    x = inputs.x
    with _without_autocast(x):
        output, gates, c = engine(backend, x.device, x.dtype).forward(inputs, save, recompute)
    return output.contiguous(), gates, c


def _wavefront_fake(*arguments: Any) -> tuple[Tensor, Tensor, Tensor]:
    """The shapes and dtypes of the operator's results."""
    *tensors, directions, cell, save, recompute, _ = arguments
    inputs = SweepInputs._make((*tensors, tuple(directions), cell))
    check_devices(inputs)
    x, (dirs, gate_dim, _) = inputs.x, inputs.weight_ih.shape
    units = gate_dim // cell_traits(cell, inputs.ndim)[0]
    output = x.new_empty(*x.shape[:-1], dirs, units)
    if not save:
        return output, x.new_empty(0), x.new_empty(0)
    rows, dtype = prod(x.shape[:-1]), state_dtype(x)  # with `numel`, every shape would compile anew
    gates = x.new_empty(0) if recompute else x.new_empty(dirs, rows, gate_dim, dtype=dtype)
    return output, gates, x.new_empty(dirs, rows, units, dtype=dtype)


def _wavefront_backward(*arguments: Any) -> tuple[Tensor, ...]:
    """The gradients of `wavefront`'s first seven inputs; empty for those that are None, and for x unless
    `wants_dx`."""
    grad, output, gates, c, *tensors, directions, cell, backend, wants_dx = arguments
    inputs = SweepInputs._make((*tensors, tuple(directions), cell))
    check_inputs(inputs)
    x = inputs.x
    with _without_autocast(x):
        backward = engine(backend, x.device, x.dtype).backward
        gradients = backward(inputs, grad, output, gates, c, wants_dx)
    return tuple(grad.new_empty(0) if g is None else g.contiguous() for g in gradients)


def _wavefront_backward_fake(*arguments: Any) -> tuple[Tensor, ...]:
    grad, _, _, _, x, *others = arguments
    tensors = (x if arguments[-1] else None, *others[: TENSORS - 2])
    return tuple(grad.new_empty(0) if t is None else t.new_empty(t.shape) for t in tensors)


def _save_for_backward(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor, Tensor]) -> None:
    *tensors, ctx.directions, ctx.cell, ctx.saved, ctx.recompute, ctx.backend = inputs
    ctx.mark_non_differentiable(*output[1:])
    ctx.set_materialize_grads(False)  # zeros in place of the gates' gradient would be as large as the gates
    ctx.save_for_backward(*output, *tensors)


def _backward(ctx: Any, grad: Tensor | None, *_: Any) -> tuple[Tensor | None, ...]:
    if grad is None:
        return (None,) * len(ctx.needs_input_grad)
    output, gates, c, *tensors = ctx.saved_tensors
    arguments = (*tensors, ctx.directions, ctx.cell)
    if not ctx.saved:  # the graph was captured where no gradient was wanted
        output, gates, c = wavefront(*arguments, True, ctx.recompute, ctx.backend)
    wants_dx = ctx.needs_input_grad[0]
    gradients = wavefront_backward(grad.contiguous(), output, gates, c, *arguments, ctx.backend, wants_dx)
    wanted = (g if needed else None for g, needed in zip(gradients, ctx.needs_input_grad, strict=False))
    return (*wanted, None, None, None, None, None, None)


def _save_for_double_backward(ctx: Any, inputs: tuple[Any, ...], output: Sequence[Tensor]) -> None:
    grad, _, _, _, *tensors, ctx.directions, ctx.cell, _, ctx.wants_dx = inputs
    ctx.save_for_backward(grad, *tensors)


def _double_backward(ctx: Any, *upstream: Any) -> tuple[Tensor | None, ...]:
    """Second derivatives: differentiate the sweep twice with plain autograd. Third ones are refused."""
    if torch.is_grad_enabled():
        raise RuntimeError(
            "mdlstm::wavefront can be differentiated twice, not three times; "
            "use MDLSTM(..., backend='reference') for higher derivatives"
        )
    *saved, sizes = ctx.saved_tensors
    dtype = state_dtype(saved[0])
    precise: list[Any] = [None if t is None else t.detach().to(dtype) for t in saved]
    grad, *tensors = precise
    leaves = [t.requires_grad_() for t in (grad, *tensors) if t is not None]
    with torch.enable_grad(), _without_autocast(grad):
        output, _, _ = torch_sweep.forward(
            SweepInputs._make((*tensors, sizes, tuple(ctx.directions), ctx.cell))
        )
        first = torch.autograd.grad(output, leaves[1:], grad, create_graph=True, materialize_grads=True)
        remaining = iter(first)
        pairs = [(next(remaining), u) for t, u in zip(tensors, upstream, strict=True) if t is not None]
        pairs = [(g, u) for g, u in pairs[0 if ctx.wants_dx else 1 :] if u is not None]
        second = torch.autograd.grad(
            [g for g, _ in pairs], leaves, [u.to(dtype) for _, u in pairs], materialize_grads=True
        )
    rounded = iter([gradient.to(saved[0].dtype) for gradient in second])
    grad_grad = next(rounded)
    tensor_grads = (None if t is None else next(rounded) for t in tensors)
    return (grad_grad, None, None, None, *tensor_grads, None, None, None, None, None)


def _register() -> None:
    library = torch.library
    library.impl("mdlstm::wavefront", "default", _wavefront)
    library.impl("mdlstm::wavefront_backward", "default", _wavefront_backward)
    library.register_fake("mdlstm::wavefront", _wavefront_fake)
    library.register_fake("mdlstm::wavefront_backward", _wavefront_backward_fake)
    library.register_autograd("mdlstm::wavefront", _backward, setup_context=_save_for_backward)
    library.register_autograd(
        "mdlstm::wavefront_backward", _double_backward, setup_context=_save_for_double_backward
    )


_register()
