"""`mdlstm::wavefront_states`, the sweep of `mdlstm::wavefront` with initial and final states.

It is an operator of its own, so that sweeps without states, and graphs that were saved with them, stay as
they are. All faces of a grid are in one tensor for h and one for c: see `mdlstm_tk.backends.faces`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from mdlstm_tk import flops
from mdlstm_tk.backends import reference
from mdlstm_tk.backends.faces import Faces, check_faces
from mdlstm_tk.backends.inputs import (
    SweepInputs,
    check_inputs,
    check_residuals,
    state_dtype,
)
from mdlstm_tk.backends.tables import ragged_rows
from mdlstm_tk.backends.torch import sweep as torch_sweep
from mdlstm_tk.import_hooks import when_imported
from mdlstm_tk.operator import (
    INPUTS,
    check_captured,
    fake_results,
    kept_rows,
    needs_plain_autograd,
    pad_rows,
    register_gradient,
    run_backward,
    run_forward,
    split_options,
    unpack,
    wants_residuals,
    without_autocast,
)

STATES = "Tensor h_first, Tensor c_first"
torch.library.define(
    "mdlstm::wavefront_states",
    f"({INPUTS}, {STATES}, bool save, bool recompute, str backend, int? rows=None) "
    "-> (Tensor, Tensor, Tensor, Tensor, Tensor)",
)
torch.library.define(
    "mdlstm::wavefront_states_backward",
    f"(Tensor grad, Tensor output, Tensor gates, Tensor c, {INPUTS}, {STATES}, Tensor dh_last, "
    "Tensor dc_last, str backend, bool wants_dx) "
    "-> (Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor)",
)
wavefront_states = torch.ops.mdlstm.wavefront_states.default
wavefront_states_backward = torch.ops.mdlstm.wavefront_states_backward.default
TENSORS = 7  # the differentiable tensors of `SweepInputs`


def sweep_states(
    inputs: SweepInputs, first: Faces, backend: str = "auto", recompute: bool = False
) -> tuple[Tensor, Faces]:
    """Sweep a grid from initial states: `mdlstm_tk.operator.sweep`, whose arguments it shares.

    Returns:
        h (N, *grid, dirs, n) and the final states.

    Raises:
        InputError: the inputs do not fit each other, or the backend cannot run them.
    """
    if backend == "reference":
        return reference.forward_states(inputs, first)
    if needs_plain_autograd():
        with without_autocast(inputs.x):
            return _in_plain_autograd(inputs, first)
    save = wants_residuals([*inputs.tensors, *first])
    options = save, recompute, backend, kept_rows(inputs, save)
    output, h_last, c_last, _, _ = wavefront_states(*inputs, *first, *options)
    return output, Faces(h_last, c_last)


def _in_plain_autograd(inputs: SweepInputs, first: Faces) -> tuple[Tensor, Faces]:
    output, _, _, last = torch_sweep.forward(inputs, first=first)
    assert last is not None
    return output, last


def _unpack(arguments: Sequence[Any]) -> tuple[SweepInputs, Faces]:
    """The inputs and the initial states, which an operator gets as its first twelve arguments."""
    *given, h_first, c_first = arguments
    return unpack(given), Faces(h_first, c_first)


def _forward(*arguments: Any) -> tuple[Tensor, ...]:
    """The operator: h, h and c of the final states, and if `save`, gates and c as for `wavefront`."""
    given, (save, recompute, backend, rows) = split_options(arguments)
    inputs, first = _unpack(given)
    check_inputs(inputs)
    check_faces(inputs, first)
    output, gates, c, last = run_forward(backend, inputs, save, recompute, first)
    assert last is not None
    return output, *last, pad_rows(gates, inputs, rows), pad_rows(c, inputs, rows)


def _fake_forward(*arguments: Any) -> tuple[Tensor, ...]:
    given, (save, recompute, backend, rows) = split_options(arguments)
    inputs, first = _unpack(given)
    check_captured(inputs, backend, h_first=first.h, c_first=first.c)
    output, gates, c = fake_results(inputs, save, recompute, rows)
    return output, *(face.new_empty(face.shape) for face in first), gates, c


def _backward(*arguments: Any) -> tuple[Tensor, ...]:
    """The gradients of the first seven inputs as those of `wavefront_backward`, and of the initial h and
    c."""
    grad, output, gates, c, *given, dh_last, dc_last, backend, wants_dx = arguments
    inputs, first = _unpack(given)
    d_last = Faces(dh_last, dc_last)
    check_inputs(inputs)
    check_residuals(inputs, grad, output, gates, c, ragged_rows(inputs))
    check_faces(inputs, first)
    check_faces(inputs, d_last, ("dh_last", "dc_last"))
    return run_backward(backend, inputs, grad, output, gates, c, wants_dx, first, d_last)


def _fake_backward(*arguments: Any) -> tuple[Tensor, ...]:
    grad, output, gates, c, *given, dh_last, dc_last, backend, wants_dx = arguments
    inputs, first = _unpack(given)
    states = {"h_first": first.h, "c_first": first.c, "dh_last": dh_last, "dc_last": dc_last}
    check_captured(inputs, backend, grad=grad, output=output, gates=gates, c=c, **states)
    tensors = [inputs.x if wants_dx else None, *inputs.tensors[1:], *first]
    return tuple(grad.new_empty(0) if t is None else t.new_empty(t.shape) for t in tensors)


def _save_for_backward(ctx: Any, inputs: Sequence[Any], output: tuple[Tensor, ...]) -> None:
    given, (ctx.saved, ctx.recompute, ctx.backend, _) = split_options(inputs)
    *tensors, ctx.directions, ctx.cell, h_first, c_first = given
    y, _, _, gates, c = output
    ctx.mark_non_differentiable(gates, c)
    ctx.set_materialize_grads(False)  # zeros in place of the gates' gradient would be as large as the gates
    ctx.save_for_backward(y, gates, c, h_first, c_first, *tensors)


def _run_backward(ctx: Any, *grads: Any) -> tuple[Tensor | None, ...]:
    needed = ctx.needs_input_grad
    output, gates, c, *first = ctx.saved_tensors[:5]
    arguments = (*ctx.saved_tensors[5:], ctx.directions, ctx.cell, *first)
    grad, dh_last, dc_last = (
        torch.zeros_like(like) if given is None else given.contiguous()
        for given, like in zip(grads[:3], (output, *first), strict=True)
    )
    if torch.is_grad_enabled():
        gradients = _differentiable_gradients(arguments, (grad, dh_last, dc_last))
    else:
        if not ctx.saved:  # the graph was captured where no gradient was wanted
            output, _, _, gates, c = wavefront_states(*arguments, True, ctx.recompute, ctx.backend)
        gradients = wavefront_states_backward(
            grad, output, gates, c, *arguments, dh_last, dc_last, ctx.backend, needed[0]
        )
    *of_inputs, dh_first, dc_first = gradients
    wanted = [g if need else None for g, need in zip(of_inputs, needed, strict=False)]
    options = [None] * (len(needed) - len(wanted) - 5)
    return (*wanted, None, None, None, dh_first, dc_first, *options)


def _differentiable_gradients(arguments: Sequence[Any], grads: Sequence[Tensor]) -> Sequence[Tensor | None]:
    """The gradients where they are to be differentiated once more: by plain autograd."""
    inputs, first = _unpack(arguments)
    tensors = [*inputs.tensors, *first]
    dtype = state_dtype(inputs.x)
    precise: list[Any] = [None if t is None else t.to(dtype) for t in tensors]
    with without_autocast(inputs.x):
        *differentiable, h_first, c_first = precise
        inputs = SweepInputs._make((*differentiable, *inputs[TENSORS:]))
        output, last = _in_plain_autograd(inputs, Faces(h_first, c_first))
        leaves = [t for t in tensors if t is not None and t.requires_grad]
        found = torch.autograd.grad(
            (output, *last),
            leaves,
            tuple(grad.to(dtype) for grad in grads),
            create_graph=True,
            materialize_grads=True,
        )
    remaining = iter(found)
    return [next(remaining) if t is not None and t.requires_grad else None for t in tensors]


def _register() -> None:
    library = torch.library
    library.impl("mdlstm::wavefront_states", "default", _forward)
    library.impl("mdlstm::wavefront_states_backward", "default", _backward)
    library.register_fake("mdlstm::wavefront_states", _fake_forward)
    library.register_fake("mdlstm::wavefront_states_backward", _fake_backward)
    register_gradient("wavefront_states", _run_backward, _save_for_backward)
    when_imported("torch.utils.flop_counter", flops.register_states)


_register()
