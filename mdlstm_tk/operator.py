"""`mdlstm::wavefront`, the torch operator that runs a layer's whole sweep.

Autograd, `torch.compile`, autocast and ONNX export all see this single node, whichever backend computes it.
The layer calls it through `sweep`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from math import prod
from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad

from mdlstm_tk import flops
from mdlstm_tk._util.arguments import check_dtype, choice
from mdlstm_tk._util.masking import is_readable
from mdlstm_tk.backends import reference
from mdlstm_tk.backends.dispatch import (
    OPERATOR_BACKENDS,
    engine,
    gates_are_uncertain,
    report_failure,
)
from mdlstm_tk.backends.faces import Faces
from mdlstm_tk.backends.inputs import (
    SweepInputs,
    cell_traits,
    check_devices,
    check_inputs,
    check_residuals,
    state_dtype,
)
from mdlstm_tk.backends.specialize import KernelError
from mdlstm_tk.backends.tables import ragged_rows
from mdlstm_tk.backends.torch import sweep as torch_sweep
from mdlstm_tk.errors import InputError
from mdlstm_tk.import_hooks import when_imported

__all__ = ["SweepInputs", "sweep", "wavefront", "wavefront_backward"]

INPUTS = (
    "Tensor x, Tensor weight_ih, Tensor? weight_hh, Tensor? bias, Tensor? peephole, Tensor? norm_weight, "
    "Tensor? norm_bias, Tensor? sizes, int[] directions, str cell"
)
torch.library.define(
    "mdlstm::wavefront",
    f"({INPUTS}, bool save, bool recompute, str backend, int? rows=None) -> (Tensor, Tensor, Tensor)",
)
torch.library.define(
    "mdlstm::wavefront_backward",
    f"(Tensor grad, Tensor output, Tensor gates, Tensor c, {INPUTS}, str backend, bool wants_dx) "
    "-> (Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor)",
)
torch.library.define(
    "mdlstm::wavefront_double_backward",
    f"(Tensor grad, {INPUTS}, bool wants_dx, Tensor?[] upstream) "
    "-> (Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor)",
)
wavefront = torch.ops.mdlstm.wavefront.default
wavefront_backward = torch.ops.mdlstm.wavefront_backward.default
_wavefront_double_backward = torch.ops.mdlstm.wavefront_double_backward.default
_library = torch.library.Library(
    "mdlstm", "FRAGMENT"
)  # what is registered with it lives as long as it does
Gradient = Callable[..., tuple[Tensor | None, ...]]
SaveForBackward = Callable[[Any, Sequence[Any], Any], None]
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
    if needs_plain_autograd():
        with without_autocast(inputs.x):
            return torch_sweep.forward(inputs)[0]
    save = wants_residuals(inputs.tensors)
    output: Tensor = wavefront(*inputs, save, recompute, backend, kept_rows(inputs, save))[0]
    return output


def needs_plain_autograd() -> bool:
    """Whether a transform is active that cannot see into an operator."""
    return torch._C._are_functorch_transforms_active() or forward_ad._current_level >= 0


def wants_residuals(tensors: Sequence[Tensor | None]) -> bool:
    """Whether a forward pass is to save what a backward pass needs."""
    wants_gradients = torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in tensors)
    # `torch.jit.trace` runs the layer with and without gradients, and expects the same graph.
    return wants_gradients and not torch.jit.is_tracing()  # type: ignore[attr-defined,no-untyped-call]


def kept_rows(inputs: SweepInputs, save: bool) -> int | None:
    """The operator's argument `rows`. A graph that is captured must not depend on the values of `sizes`."""
    if not save or torch.compiler.is_compiling() or type(inputs.sizes) is not Tensor:
        return None
    return ragged_rows(inputs)


def without_autocast(x: Tensor) -> AbstractContextManager[Any]:
    """Turn autocast off: the inputs have its dtype already, and float32 inside a sweep is intended."""
    device = x.device.type
    if torch.amp.is_autocast_available(device) and torch.is_autocast_enabled(device):
        return torch.autocast(device, enabled=False)
    return nullcontext()


def _wavefront(*arguments: Any) -> tuple[Tensor, Tensor, Tensor]:
    """The operator: h and, if `save`, gates and c as the backend's backward wants them; only c if also
    `recompute`. They have `rows` rows, by default N·P: those of a ragged batch come first, then zeros."""
    given, (save, recompute, backend, rows) = split_options(arguments)
    inputs = unpack(given)
    check_inputs(inputs)
    output, gates, c, _ = run_forward(backend, inputs, save, recompute)
    if rows is None and inputs.sizes is None:
        return output, gates, c
    return output, pad_rows(gates, inputs, rows), pad_rows(c, inputs, rows)


def unpack(given: Sequence[Any]) -> SweepInputs:
    """The inputs, which an operator gets as its first ten arguments. A captured graph may give it `sizes`
    on a GPU; they are read here, once."""
    *tensors, sizes, directions, cell = given
    if sizes is not None and is_readable(sizes):
        sizes = sizes.cpu()
    return SweepInputs._make((*tensors, sizes, tuple(directions), cell))


def split_options(arguments: Sequence[Any]) -> tuple[Sequence[Any], tuple[bool, bool, str, int | None]]:
    """What an operator is given, and its options save, recompute, backend and rows; torch may leave out the
    last one where it is None."""
    if isinstance(arguments[-1], str):
        return arguments[:-3], (arguments[-3], arguments[-2], arguments[-1], None)
    return arguments[:-4], (arguments[-4], arguments[-3], arguments[-2], arguments[-1])


def pad_rows(kept: Tensor, inputs: SweepInputs, rows: int | None) -> Tensor:
    """`kept` (dirs, rows of the sweep, k) with as many rows as the operator promises; (0,) stays as it is.

    Raises:
        InputError: it has more.
    """
    promised = inputs.x.shape[:-1].numel() if rows is None else rows
    if kept.dim() == 1 or kept.shape[1] == promised:
        return kept
    if kept.shape[1] > promised:
        raise InputError(f"rows must be None or at least {kept.shape[1]}, got {rows}")
    padded = kept.new_zeros(kept.shape[0], promised, kept.shape[2])
    padded[:, : kept.shape[1]] = kept
    return padded


def run_forward(
    backend: str, inputs: SweepInputs, *options: Any
) -> tuple[Tensor, Tensor, Tensor, Faces | None]:
    """Call `forward` of the backend that runs, or of another one if its kernel cannot be compiled."""
    x = inputs.x
    with without_autocast(x):
        try:
            output, gates, c, last = engine(backend, x.device, x.dtype).forward(inputs, *options)
        except KernelError as error:
            report_failure(x.device, error)
            output, gates, c, last = engine(backend, x.device, x.dtype).forward(inputs, *options)
    return output.contiguous(), gates, c, last


def _wavefront_fake(*arguments: Any) -> tuple[Tensor, Tensor, Tensor]:
    """The shapes and dtypes of the operator's results."""
    given, (save, recompute, backend, rows) = split_options(arguments)
    inputs = unpack(given)
    check_captured(inputs, backend)
    return fake_results(inputs, save, recompute, rows)


def fake_results(
    inputs: SweepInputs, save: bool, recompute: bool, rows: int | None
) -> tuple[Tensor, Tensor, Tensor]:
    """Tensors of the shapes and dtypes of the results of `run_forward`."""
    x, (dirs, gate_dim, _) = inputs.x, inputs.weight_ih.shape
    units = gate_dim // cell_traits(inputs.cell, inputs.ndim)[0]
    output = x.new_empty(*x.shape[:-1], dirs, units)
    if not save:
        return output, x.new_empty(0), x.new_empty(0)
    rows = prod(x.shape[:-1]) if rows is None else rows  # with `numel`, every shape would compile anew
    dtype = state_dtype(x)
    gates = x.new_empty(0) if recompute else x.new_empty(dirs, rows, gate_dim, dtype=dtype)
    return output, gates, x.new_empty(dirs, rows, units, dtype=dtype)


def check_captured(inputs: SweepInputs, backend: str, **residuals: Tensor) -> None:
    """Check what can be checked before the shapes are known."""
    choice("backend", backend, OPERATOR_BACKENDS)
    check_dtype(inputs.x.dtype, "the dtype of x")
    check_devices(inputs, **residuals)


def _wavefront_backward(*arguments: Any) -> tuple[Tensor, ...]:
    """The gradients of `wavefront`'s first seven inputs; empty for those that are None, and for x unless
    `wants_dx`."""
    grad, output, gates, c, *given, backend, wants_dx = arguments
    inputs = unpack(given)
    check_inputs(inputs)
    check_residuals(inputs, grad, output, gates, c, ragged_rows(inputs))
    return run_backward(backend, inputs, grad, output, gates, c, wants_dx)


def run_backward(
    backend: str, inputs: SweepInputs, grad: Tensor, output: Tensor, gates: Tensor, c: Tensor, *options: Any
) -> tuple[Tensor, ...]:
    """Call `backward` of the backend that runs, or of another one if its kernel cannot be compiled. None
    becomes an empty tensor."""
    x = inputs.x
    with without_autocast(x):
        run = engine(backend, x.device, x.dtype)
        if gates_are_uncertain(x.device):  # kernels save activated gates, `torch` pre-activations
            gates = gates.new_empty(0)  # so they are computed again
        count = ragged_rows(inputs)
        if count is not None:  # without the rows that `pad_rows` has added
            gates, c = gates if gates.dim() == 1 else gates[:, :count], c[:, :count]
        try:
            gradients = run.backward(inputs, grad, output, gates, c, *options)
        except KernelError as error:
            report_failure(x.device, error)
            run, gates = engine(backend, x.device, x.dtype), gates.new_empty(0)
            gradients = run.backward(inputs, grad, output, gates, c, *options)
    return tuple(grad.new_empty(0) if g is None else g.contiguous() for g in gradients)


def _wavefront_backward_fake(*arguments: Any) -> tuple[Tensor, ...]:
    grad, output, gates, c, *tensors, directions, cell, backend, wants_dx = arguments
    inputs = SweepInputs._make((*tensors, tuple(directions), cell))
    check_captured(inputs, backend, grad=grad, output=output, gates=gates, c=c)
    tensors = [tensors[0] if wants_dx else None, *tensors[1 : TENSORS - 1]]
    return tuple(grad.new_empty(0) if t is None else t.new_empty(t.shape) for t in tensors)


def _save_for_backward(ctx: Any, inputs: Sequence[Any], output: tuple[Tensor, Tensor, Tensor]) -> None:
    given, (ctx.saved, ctx.recompute, ctx.backend, _) = split_options(inputs)
    *tensors, ctx.directions, ctx.cell = given
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
    return (*wanted, *[None] * (len(ctx.needs_input_grad) - TENSORS + 1))


def _save_for_double_backward(ctx: Any, inputs: Sequence[Any], output: Sequence[Tensor]) -> None:
    grad, _, _, _, *tensors, ctx.directions, ctx.cell, _, ctx.wants_dx = inputs
    ctx.save_for_backward(grad, *tensors)


def _double_backward(ctx: Any, *upstream: Any) -> tuple[Tensor | None, ...]:
    """Second derivatives. Third ones are refused."""
    if torch.is_grad_enabled():
        raise RuntimeError(
            "mdlstm::wavefront can be differentiated twice, not three times; "
            "use MDLSTM(..., backend='reference') for higher derivatives"
        )
    arguments = (*ctx.saved_tensors, ctx.directions, ctx.cell)
    grad_grad, *gradients = _wavefront_double_backward(*arguments, ctx.wants_dx, upstream)
    tensors = ctx.saved_tensors[1:TENSORS]
    wanted = (None if t is None else g for t, g in zip(tensors, gradients, strict=True))
    return (grad_grad, None, None, None, *wanted, *[None] * 5)


def _double_backward_by_autograd(*arguments: Any) -> tuple[Tensor, ...]:
    """The gradients of `wavefront_backward`'s grad and of the seven inputs, empty for those that are None:
    differentiate the sweep twice with plain autograd."""
    given, *tensors, sizes, directions, cell, wants_dx, upstream = arguments
    check_inputs(SweepInputs._make((*tensors, sizes, tuple(directions), cell)))
    dtype = state_dtype(given)
    precise: list[Any] = [None if t is None else t.detach().to(dtype) for t in (given, *tensors)]
    grad, *differentiable = precise
    leaves = [t.requires_grad_() for t in precise if t is not None]
    with torch.enable_grad(), without_autocast(grad):
        inputs = SweepInputs._make((*differentiable, sizes, tuple(directions), cell))
        output = torch_sweep.forward(inputs)[0]
        first = torch.autograd.grad(output, leaves[1:], grad, create_graph=True, materialize_grads=True)
        remaining = iter(first)
        pairs = [(next(remaining), u) for t, u in zip(tensors, upstream, strict=True) if t is not None]
        pairs = [(g, u) for g, u in pairs[0 if wants_dx else 1 :] if u is not None]
        second = torch.autograd.grad(
            [g for g, _ in pairs], leaves, [u.to(dtype) for _, u in pairs], materialize_grads=True
        )
    rounded = iter([gradient.to(given.dtype) for gradient in second])
    return tuple(given.new_empty(0) if t is None else next(rounded).contiguous() for t in (given, *tensors))


def _double_backward_fake(*arguments: Any) -> tuple[Tensor, ...]:
    grad, tensors = arguments[0], arguments[:TENSORS]
    return tuple(grad.new_empty(0) if t is None else t.new_empty(t.shape) for t in tensors)


def register_gradient(name: str, backward: Gradient, save: SaveForBackward) -> None:
    """As `torch.library.register_autograd` does it, but without looking up the defaults in the schema at
    every call, which takes longer than the sweep of a small grid.

    Args:
        name: of the operator, without "mdlstm::".
        backward: from the context and the gradients of the results to those of the arguments.
        save: takes the context, the arguments and the results. Of the last arguments those may be missing
            that have their default value.
    """
    operator = getattr(torch.ops.mdlstm, name).default

    def run(keys: torch._C.DispatchKeySet, arguments: Sequence[Any]) -> Any:
        with torch._C._AutoDispatchBelowAutograd():
            return operator.redispatch(keys & torch._C._after_autograd_keyset, *arguments)

    class Differentiable(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, *arguments: Any) -> Any:
            *given, keys = arguments
            results = run(keys, given)
            save(ctx, given, results)
            return results

        @staticmethod
        def backward(ctx: Any, *grads: Any) -> Any:
            return (*backward(ctx, *grads), None)

    def kernel(keys: torch._C.DispatchKeySet, *arguments: Any) -> Any:
        if torch.is_grad_enabled() and torch._C._any_requires_grad(*arguments):
            return Differentiable.apply(*arguments, keys)  # type: ignore[no-untyped-call]
        return run(keys, arguments)

    _library.impl(name, kernel, "Autograd", with_keyset=True)


def _register() -> None:
    library = torch.library
    library.impl("mdlstm::wavefront", "default", _wavefront)
    library.impl("mdlstm::wavefront_backward", "default", _wavefront_backward)
    library.impl("mdlstm::wavefront_double_backward", "default", _double_backward_by_autograd)
    library.register_fake("mdlstm::wavefront", _wavefront_fake)
    library.register_fake("mdlstm::wavefront_backward", _wavefront_backward_fake)
    library.register_fake("mdlstm::wavefront_double_backward", _double_backward_fake)
    register_gradient("wavefront", _backward, _save_for_backward)
    register_gradient("wavefront_backward", _double_backward, _save_for_double_backward)
    when_imported("torch.utils.flop_counter", flops.register)


_register()
