"""The sweep of a layer: a plain autograd function in eager mode, and the operator `mdlstm::wavefront`.

Eager calls need no operator: the function calls a backend, and its backward calls the backend's gradient.
Whatever must see one node instead of what is inside it (`torch.compile`, `torch.export` and with it ONNX,
tracing, dispatch modes such as the FLOP counter, meta tensors) gets the operator, which does the same.
Where a transform must see inside (`torch.func`, forward-mode differentiation, second derivatives), the
sweep of `mdlstm_tk.backends.torch` runs in plain autograd.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import is_in_torch_dispatch_mode

from mdlstm_tk.backends import reference
from mdlstm_tk.backends.inputs import (
    DIFFERENTIABLE,
    TENSORS,
    SweepInputs,
    SweepResults,
    check_inputs,
    check_tensor,
)
from mdlstm_tk.backends.run import (
    differentiable_gradients,
    in_plain_autograd,
    needs_plain_autograd,
    run_backward,
    run_forward,
    wanted_gradients,
    without_autocast,
)
from mdlstm_tk.cells.step import graph_name
from mdlstm_tk.flops import register_flops
from mdlstm_tk.operator import captured_gradients, in_shape, named_arguments, result_shapes

SAVED = (*TENSORS, "output", "gates", "states")  # for backward


def sweep(
    inputs: SweepInputs, backend: str = "auto", recompute: bool = False
) -> tuple[Tensor, Tensor | None]:
    """Sweep a grid in one or more directions (Graves, Fernández, Schmidhuber 2007, §2).

    Args:
        inputs: x, the parameters, initial states, sizes, directions and the cell.
        backend: a name in `mdlstm_tk.backends.dispatch.BACKENDS`. Inside `torch.func` and forward-mode
            differentiation "torch" runs in place of all but "reference", which is plain autograd itself.
        recompute: keep only h and the other states for backward, (1 + S)·n numbers per position and
            direction instead of (1 + S + G)·n, and compute the gates again from them.

    Returns:
        h (N, *grid, dirs, n), and the final states (N, F, dirs, 1 + S, n), or None if there are no initial
        ones.

    Raises:
        InputError: the inputs do not fit each other, or the backend cannot run them.
    """
    traced = torch.compiler.is_compiling() or torch.jit.is_tracing()  # type: ignore[attr-defined,no-untyped-call]
    if not traced:
        check_inputs(inputs)
    if backend == "reference":
        with without_autocast(inputs.x):
            return reference.forward(inputs)
    if needs_plain_autograd():
        return in_plain_autograd(inputs)
    save = wants_gradients(inputs.tensors)
    if _is_captured(*inputs.tensors, inputs.sizes):
        register_flops()
        save = save and not torch.jit.is_tracing()  # type: ignore[attr-defined,no-untyped-call]
        output, final, _, _ = torch.ops.mdlstm.wavefront(*named_arguments(inputs), save, recompute, backend)
        return output, None if inputs.initial is None else final
    if not save:
        results = run_forward(inputs, backend, False, False)
        return results.output, results.final
    how, tensors = (inputs.without_tensors(), backend, recompute), (*inputs.tensors, inputs.sizes)
    output, final = _Sweep.apply(*how, *tensors)  # type: ignore[no-untyped-call]
    return output, final


def wants_gradients(tensors: Sequence[Tensor | None]) -> bool:
    """Tell whether a backward pass may follow: gradients are enabled, and a tensor requires them."""
    return torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in tensors)


def _is_captured(*tensors: Tensor | None) -> bool:
    """Tell whether a sweep must appear as one node, to whatever captures or observes operators."""
    return (
        torch.compiler.is_compiling()
        or torch.jit.is_tracing()  # type: ignore[attr-defined,no-untyped-call]
        or any(t is not None and (type(t) not in (Tensor, nn.Parameter) or t.is_meta) for t in tensors)
        or is_in_torch_dispatch_mode()
    )


class _Sweep(torch.autograd.Function):
    """A sweep in eager mode."""

    @staticmethod
    def forward(
        ctx: Any, template: SweepInputs, backend: str, recompute: bool, *tensors: Tensor | None
    ) -> tuple[Tensor, Tensor | None]:
        inputs = template.with_tensors(tensors)
        results = run_forward(inputs, backend, True, recompute)
        ctx.how = template, graph_name(inputs.cell, inputs.ndim, inputs.present), backend, recompute
        ctx.set_materialize_grads(False)
        saved = *tensors, results.output, results.gates, results.states
        ctx.save_for_backward(*saved)
        ctx.kinds = [None if t is None else (t.shape, t.dtype) for t in saved]
        return results.output, results.final

    @staticmethod
    def backward(ctx: Any, grad: Tensor | None, dfinal: Tensor | None) -> tuple[Any, ...]:
        (template, cell, backend, recompute), saved = ctx.how, ctx.saved_tensors
        for name, tensor, kind in zip(SAVED, saved, ctx.kinds, strict=True):
            if tensor is not None:  # hooks of saved tensors may return others
                check_tensor(name, tensor, *kind)
        *tensors, output, gates, states = saved
        inputs, needs_grad = template.with_tensors(tensors), ctx.needs_input_grad[3:-1]
        sees_inside = needs_plain_autograd() or is_batched(grad) or is_batched(dfinal)
        if torch.is_grad_enabled() or sees_inside:
            with torch.enable_grad():
                return None, None, None, *differentiable_gradients(inputs, grad, dfinal, needs_grad), None
        if _is_captured(*saved, grad, dfinal):
            shapes = result_shapes(inputs, True, recompute)
            gates = in_shape(gates, output, *shapes["gates"])
            results = SweepResults(output, None, gates, in_shape(states, output, *shapes["states"]))
            named = *inputs[:-1], cell
            gradients = captured_gradients(named, results, grad, dfinal, needs_grad, recompute, backend)
        else:
            results = SweepResults(output, None, gates, states)
            gradients = run_backward(inputs, results, grad, dfinal, backend, *wanted_gradients(needs_grad))
        pairs = zip(DIFFERENTIABLE, needs_grad, strict=True)
        return None, None, None, *(gradients.get(name) if needs else None for name, needs in pairs), None


def is_batched(grad: Tensor | None) -> bool:
    """Tell whether several gradients come together, as `is_grads_batched=True` sends them."""
    tests = torch._C._functorch.is_batchedtensor, torch._C._functorch.is_legacy_batchedtensor
    return grad is not None and any(is_one(grad) for is_one in tests)
