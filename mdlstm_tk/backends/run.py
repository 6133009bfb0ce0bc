"""Run a sweep by a backend, or in plain autograd, where a transform must see inside it."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad

from mdlstm_tk.backends.dispatch import engine
from mdlstm_tk.backends.inputs import DIFFERENTIABLE, Gradients, SweepInputs, SweepResults, state_dtype
from mdlstm_tk.backends.torch import sweep as torch_sweep


def run_forward(inputs: SweepInputs, backend: str, *options: bool) -> SweepResults:
    """Run the backend; the options are `save` and `recompute`."""
    with without_autocast(inputs.x):
        return engine(backend, inputs.x.device, inputs.x.dtype).forward(inputs, *options)


def run_backward(
    inputs: SweepInputs,
    results: SweepResults,
    grad: Tensor | None,
    dfinal: Tensor | None,
    backend: str,
    *wanted: bool,
) -> Gradients:
    """The gradients; the arguments are those of `Engine.backward`, but a gradient that is None is zeros."""
    grad = _dense(grad, results.output)
    dfinal = None if inputs.initial is None else _dense(dfinal, inputs.initial)
    with without_autocast(inputs.x):
        run = engine(backend, inputs.x.device, inputs.x.dtype)
        return run.backward(inputs, results, grad, dfinal, *wanted)


def _dense(grad: Tensor | None, like: Tensor) -> Tensor:
    """A gradient, contiguous."""
    if grad is None:
        return torch.zeros_like(like)
    return (grad if grad.layout == torch.strided else grad.to_dense()).contiguous()


def wanted_gradients(needs_grad: Sequence[bool]) -> tuple[bool, bool]:
    """If gradients are wanted of x, and of any parameter, from those that the inputs need."""
    return needs_grad[0], any(needs_grad[1 : DIFFERENTIABLE.index("initial")])


def needs_plain_autograd() -> bool:
    """Tell whether a transform is active that cannot see into an operator."""
    return torch._C._are_functorch_transforms_active() or in_forward_mode()


def in_forward_mode() -> bool:
    """Tell whether derivatives are computed in forward mode."""
    return forward_ad._current_level >= 0


def in_plain_autograd(inputs: SweepInputs) -> tuple[Tensor, Tensor | None]:
    """h and the final states. 16-bit inputs are converted first: torch has no derivative of their products
    with float32 results, which a GPU computes."""
    dtype = state_dtype(inputs.x)
    converted = [None if t is None else t.to(dtype) for t in inputs.tensors]
    with without_autocast(inputs.x):
        results = torch_sweep.forward(inputs.with_tensors(converted))
    return results.output.to(inputs.x.dtype), results.final


def differentiable_gradients(
    inputs: SweepInputs, grad: Tensor | None, dfinal: Tensor | None, needs_grad: Sequence[bool]
) -> tuple[Tensor | None, ...]:
    """The gradients by plain autograd, so that they can be differentiated once more."""
    # Views, as one input may come from another: x of a second call of a layer comes from the weights, too.
    # The gradient of the weights here must leave out their way through x, which autograd follows itself.
    tensors = [None if t is None else t.view_as(t) for t in inputs.tensors]
    pairs = zip(in_plain_autograd(inputs.with_tensors(tensors)), (grad, dfinal), strict=True)
    results = [(result, d) for result, d in pairs if result is not None and d is not None]
    leaves = [t for t, needs in zip(tensors, needs_grad, strict=True) if needs and t is not None]
    with without_autocast(inputs.x):
        gradients = iter(
            torch.autograd.grad(
                [result for result, _ in results],
                leaves,
                [d for _, d in results],
                create_graph=True,
                materialize_grads=True,
            )
        )
    return tuple(next(gradients) if needs else None for needs in needs_grad)


def without_autocast(x: Tensor) -> AbstractContextManager[Any]:
    """Turn autocast off: the inputs have its dtype already, and float32 inside a sweep is intended."""
    return nullcontext() if autocast_dtype(x) is None else torch.autocast(x.device.type, enabled=False)


def autocast_dtype(x: Tensor) -> torch.dtype | None:
    """The dtype that autocast gives x, or None where it is off or the device has none. Autocast leaves
    float64 and integers alone."""
    device = x.device.type
    if (
        x.dtype in (torch.float32, torch.float16, torch.bfloat16)
        and torch.amp.is_autocast_available(device)
        and torch.is_autocast_enabled(device)
    ):
        return torch.get_autocast_dtype(device)
    return None
