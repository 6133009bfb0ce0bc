"""The sweep of a layer: a plain autograd function in eager mode, and the operator `mdlstm::wavefront`.

Eager calls need no operator: the function calls a backend, and its backward calls the backend's gradient.
Whatever must see one node instead of what is inside it (`torch.compile`, `torch.export` and with it ONNX,
tracing, dispatch modes such as the FLOP counter, meta tensors) gets the operator, which does the same.
Where a transform must see inside (`torch.func`, forward-mode differentiation, second derivatives), the
sweep of `mdlstm_tk.backends.torch` runs in plain autograd.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from math import prod
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd import forward_ad
from torch.utils._python_dispatch import is_in_torch_dispatch_mode

from mdlstm_tk._util.arguments import check_dtype, choice
from mdlstm_tk._util.masking import is_readable
from mdlstm_tk.backends import reference
from mdlstm_tk.backends.dispatch import OPERATOR_BACKENDS, engine, has_failed_late, report_failure
from mdlstm_tk.backends.inputs import (
    DIFFERENTIABLE,
    SCHEMA,
    Engine,
    Gradients,
    SweepInputs,
    SweepResults,
    boundary_shape,
    check_devices,
    check_inputs,
    check_tensor,
    state_dtype,
)
from mdlstm_tk.backends.specialize import KernelError
from mdlstm_tk.backends.torch import sweep as torch_sweep

torch.library.define(
    "mdlstm::wavefront",
    f"({SCHEMA}, bool save, bool recompute, str backend) -> (Tensor, Tensor, Tensor, Tensor)",
)
torch.library.define(
    "mdlstm::wavefront_backward",
    f"({SCHEMA}, Tensor grad, Tensor output, Tensor gates, Tensor states, Tensor? dfinal, bool recompute, "
    f"str backend, bool wants_dx) -> ({', '.join(['Tensor'] * len(DIFFERENTIABLE))})",
)
FIELDS = len(SweepInputs._fields)
Shape = Sequence[int]


def sweep(
    inputs: SweepInputs, backend: str = "auto", recompute: bool = False
) -> tuple[Tensor, Tensor | None]:
    """Sweep a grid in one or more directions (Graves, Fernández, Schmidhuber 2007, §2).

    Args:
        inputs: x, the parameters, initial states, sizes, directions and the cell.
        backend: a name in `mdlstm_tk.backends.dispatch.BACKENDS`. Inside `torch.func` and forward-mode
            differentiation "torch" runs, whatever was asked for.
        recompute: keep only h and the other states for backward, (1 + S)·n numbers per position and
            direction instead of (1 + S + G)·n, and compute the gates again from them.

    Returns:
        h (N, *grid, dirs, n), and the final states (N, F, dirs, 1 + S, n), or None if there are no initial
        ones.

    Raises:
        InputError: the inputs do not fit each other, or the backend cannot run them.
    """
    if backend == "reference":
        return reference.forward(inputs)
    if needs_plain_autograd():
        return _in_plain_autograd(inputs)
    save = wants_gradients(inputs.tensors)
    if _is_captured(inputs.x):
        save = save and not torch.jit.is_tracing()  # type: ignore[attr-defined,no-untyped-call]
        output, final, _, _ = torch.ops.mdlstm.wavefront(*inputs, save, recompute, backend)
        return output, None if inputs.initial is None else final
    check_inputs(inputs)
    if not save:
        results, _ = _forward(inputs, backend)
        return results.output, results.final
    output, final = _Sweep.apply(inputs, backend, recompute, *inputs.tensors)  # type: ignore[no-untyped-call]
    return output, final


def needs_plain_autograd() -> bool:
    """Tell whether a transform is active that cannot see into an operator."""
    return torch._C._are_functorch_transforms_active() or forward_ad._current_level >= 0


def wants_gradients(tensors: Sequence[Tensor | None]) -> bool:
    """Tell whether a backward pass may follow: gradients are enabled, and a tensor requires them."""
    return torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in tensors)


def _is_captured(x: Tensor) -> bool:
    """Tell whether a sweep must appear as one node, to whatever captures or observes operators."""
    return (
        torch.compiler.is_compiling()
        or torch.jit.is_tracing()  # type: ignore[attr-defined,no-untyped-call]
        or type(x) not in (Tensor, nn.Parameter)
        or x.is_meta
        or is_in_torch_dispatch_mode()
    )


def _in_plain_autograd(inputs: SweepInputs) -> tuple[Tensor, Tensor | None]:
    """h and the final states. 16-bit inputs are converted first: torch has no derivative of their products
    with float32 results, which a GPU computes."""
    dtype = state_dtype(inputs.x)
    converted = [None if t is None else t.to(dtype) for t in inputs.tensors]
    with _without_autocast(inputs.x):
        results = torch_sweep.forward(inputs.with_tensors(converted))
    return results.output.to(inputs.x.dtype), results.final


def _without_autocast(x: Tensor) -> AbstractContextManager[Any]:
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


class _Sweep(torch.autograd.Function):
    """A sweep in eager mode."""

    @staticmethod
    def forward(
        ctx: Any, inputs: SweepInputs, backend: str, recompute: bool, *tensors: Tensor | None
    ) -> tuple[Tensor, Tensor | None]:
        results, ctx.engine = _forward(inputs, backend, True, recompute)
        ctx.template = inputs.without_tensors()
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(*tensors, results.output, results.gates, results.states)
        return results.output, results.final

    @staticmethod
    def backward(ctx: Any, grad: Tensor | None, dfinal: Tensor | None) -> tuple[Any, ...]:
        *tensors, output, gates, states = ctx.saved_tensors
        inputs = ctx.template.with_tensors(tensors)
        needs_grad = ctx.needs_input_grad[3:]
        if torch.is_grad_enabled() or is_batched(grad) or is_batched(dfinal):
            with torch.enable_grad():
                return None, None, None, *_differentiable_gradients(inputs, grad, dfinal, needs_grad)
        results = SweepResults(output, None, gates, states)
        gradients = _backward(inputs, results, grad, dfinal, ctx.engine, needs_grad[0])
        pairs = zip(DIFFERENTIABLE, needs_grad, strict=True)
        return None, None, None, *(gradients.get(name) if needs else None for name, needs in pairs)


def is_batched(grad: Tensor | None) -> bool:
    """Tell whether several gradients come together, as `is_grads_batched=True` sends them."""
    functorch = torch._C._functorch
    return grad is not None and (
        functorch.is_batchedtensor(grad) or functorch.is_legacy_batchedtensor(grad)
    )


def _forward(
    inputs: SweepInputs, backend: str, save: bool = False, recompute: bool = False
) -> tuple[SweepResults, Engine]:
    """Run the backend, or another one if its kernels cannot be compiled.

    Returns:
        The results, and the backend that ran.
    """
    x = inputs.x
    with _without_autocast(x):
        run = engine(backend, x.device, x.dtype)
        try:
            return run.forward(inputs, save, recompute), run
        except KernelError as error:
            report_failure(x.device, error)
            run = engine(backend, x.device, x.dtype)
            return run.forward(inputs, save, recompute), run


def _backward(
    inputs: SweepInputs,
    results: SweepResults,
    grad: Tensor | None,
    dfinal: Tensor | None,
    run: Engine | None,
    wants_dx: bool,
) -> Gradients:
    """The gradients.

    Args:
        inputs, results, grad, dfinal, wants_dx: as for `Engine.backward`; a gradient that is None is zeros.
        run: the backend that ran forward. If it is None, or its kernel does not compile, `results` is of no
            use, and plain torch runs forward once more.
    """
    grad = torch.zeros_like(results.output) if grad is None else grad.contiguous()
    if inputs.initial is not None:
        dfinal = torch.zeros_like(inputs.initial) if dfinal is None else dfinal.contiguous()
    with _without_autocast(inputs.x):
        if run is not None:
            try:
                return run.backward(inputs, results, grad, dfinal, wants_dx)
            except KernelError as error:
                report_failure(inputs.x.device, error)
        results = torch_sweep.forward(inputs, True, results.gates is None)
        return torch_sweep.backward(inputs, results, grad, dfinal, wants_dx)


def _differentiable_gradients(
    inputs: SweepInputs, grad: Tensor | None, dfinal: Tensor | None, needs_grad: Sequence[bool]
) -> tuple[Tensor | None, ...]:
    """The gradients by plain autograd, so that they can be differentiated once more."""
    # Views, as one input may come from another: x of a second call of a layer comes from the weights, too.
    # The gradient of the weights here must leave out their way through x, which autograd follows itself.
    tensors = [None if t is None else t.view_as(t) for t in inputs.tensors]
    pairs = zip(_in_plain_autograd(inputs.with_tensors(tensors)), (grad, dfinal), strict=True)
    results = [(result, d) for result, d in pairs if result is not None and d is not None]
    leaves = [t for t, needs in zip(tensors, needs_grad, strict=True) if needs and t is not None]
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


def _unpack(arguments: Sequence[Any]) -> SweepInputs:
    """The inputs, which an operator gets as its first arguments. A captured graph may give it `sizes` on a
    GPU; they are read here, once."""
    inputs = SweepInputs(*arguments[:FIELDS])
    sizes = inputs.sizes
    if sizes is not None and is_readable(sizes):
        sizes = sizes.cpu()
    return inputs._replace(sizes=sizes, signs=tuple(inputs.signs))


def _wavefront(*arguments: Any) -> tuple[Tensor, ...]:
    """The operator.

    Returns:
        h, the final states, gates and states for the backend's backward, in the shapes of `_shapes`; empty
        where there are none.
    """
    inputs, (save, recompute, backend) = _unpack(arguments), arguments[FIELDS:]
    check_inputs(inputs)
    results, _ = _forward(inputs, backend, save, recompute)
    shapes = _shapes(inputs, save, recompute).values()
    return tuple(_in_shape(t, inputs.x, *shape) for t, shape in zip(results, shapes, strict=True))


def _in_shape(result: Tensor | None, x: Tensor, shape: Shape, dtype: torch.dtype) -> Tensor:
    """A result in the shape that the operator promises: None becomes empty, and gates and states of a
    ragged batch, (dirs, rows, k), are padded to as many rows as there are positions."""
    if result is None:
        return x.new_empty(shape, dtype=dtype)
    if result.numel() == prod(shape):
        return result.view(shape).contiguous()
    padded = x.new_zeros(shape, dtype=dtype)
    padded[:, : result.shape[1]] = result
    return padded


def _shapes(inputs: SweepInputs, save: bool, recompute: bool) -> dict[str, tuple[Shape, torch.dtype]]:
    """The shapes and dtypes of the operator's results, by their names in `SweepResults`."""
    x, (dirs, gate_dim, _), dtype = inputs.x, inputs.weight_ih.shape, state_dtype(inputs.x)
    rows = prod(x.shape[:-1])  # with `numel`, every shape would compile anew
    return {
        "output": ((*x.shape[:-1], dirs, inputs.units), x.dtype),
        "final": ((0,) if inputs.initial is None else boundary_shape(inputs), dtype),
        "gates": ((dirs, rows, gate_dim) if save and not recompute else (0,), dtype),
        "states": ((dirs, rows, inputs.state_count * inputs.units) if save else (0,), dtype),
    }


def _wavefront_fake(*arguments: Any) -> tuple[Tensor, ...]:
    """Tensors of the shapes and dtypes of the operator's results."""
    inputs, (save, recompute, backend) = SweepInputs(*arguments[:FIELDS]), arguments[FIELDS:]
    _check_captured(inputs, backend)
    shapes = _shapes(inputs, save, recompute).values()
    return tuple(inputs.x.new_empty(shape, dtype=dtype) for shape, dtype in shapes)


def _check_captured(inputs: SweepInputs, backend: str, **others: Tensor | None) -> None:
    """Check what can be checked before the shapes are known."""
    choice("backend", backend, OPERATOR_BACKENDS)
    check_dtype(inputs.x.dtype, "the dtype of x")
    check_devices(inputs, **others)


def _wavefront_backward(*arguments: Any) -> tuple[Tensor, ...]:
    """The gradients in the order of `DIFFERENTIABLE`; empty where an input is None, and for x unless
    `wants_dx`."""
    inputs, x = _unpack(arguments), arguments[0]
    grad, output, gates, states, dfinal, recompute, backend, wants_dx = arguments[FIELDS:]
    check_inputs(inputs)
    others = {"grad": grad, "output": output, "states": states, "gates": gates, "dfinal": dfinal}
    check_devices(inputs, **others)
    shapes = _shapes(inputs, True, recompute)
    shapes |= {"grad": shapes["output"], "dfinal": shapes["final"]}
    for name, tensor in others.items():
        if tensor is not None:
            check_tensor(name, tensor, *shapes[name])
    results = SweepResults(output, None, None if recompute else gates, states)
    # After a failure, kernels may have written what another backend would read.
    run = None if has_failed_late(x.device) else engine(backend, x.device, x.dtype)
    gradients = _backward(inputs, results, grad, dfinal, run, wants_dx)
    in_order = (gradients.get(name) for name in DIFFERENTIABLE)
    return tuple(grad.new_empty(0) if g is None else g.contiguous() for g in in_order)


def _wavefront_backward_fake(*arguments: Any) -> tuple[Tensor, ...]:
    inputs = SweepInputs(*arguments[:FIELDS])
    grad, output, gates, states, dfinal, _, backend, wants_dx = arguments[FIELDS:]
    others = {"grad": grad, "output": output, "gates": gates, "states": states, "dfinal": dfinal}
    _check_captured(inputs, backend, **others)
    tensors = [inputs.x if wants_dx else None, *inputs.tensors[1:]]
    return tuple(grad.new_empty(0) if t is None else t.new_empty(t.shape) for t in tensors)


def _save_for_backward(ctx: Any, inputs: Sequence[Any], output: tuple[Tensor, ...]) -> None:
    template = SweepInputs(*inputs[:FIELDS]).without_tensors()
    ctx.template = template._replace(sizes=None, signs=tuple(template.signs))  # an operator gets a list
    ctx.saved, ctx.recompute, ctx.backend = inputs[FIELDS:]
    ctx.set_materialize_grads(False)  # zeros in place of the gates' gradient would be as large as the gates
    h, _, gates, states = output
    ctx.save_for_backward(*inputs[: len(DIFFERENTIABLE) + 1], h, gates, states)


def _operator_backward(ctx: Any, grad: Tensor | None, dfinal: Tensor | None, *_: Any) -> Any:
    count = len(DIFFERENTIABLE)
    *tensors, sizes, output, gates, states = ctx.saved_tensors
    inputs = ctx.template.with_tensors(tensors)._replace(sizes=sizes)
    needs_grad = ctx.needs_input_grad[:count]
    no_gradients = (None,) * (FIELDS - count + 3)  # of the other arguments
    if torch.is_grad_enabled():
        return *_differentiable_gradients(inputs, grad, dfinal, needs_grad), *no_gradients
    if not ctx.saved:  # the graph was captured where no gradient was wanted
        output, _, gates, states = torch.ops.mdlstm.wavefront(*inputs, True, ctx.recompute, ctx.backend)
    grad = torch.zeros_like(output) if grad is None else grad
    dfinal = None if inputs.initial is None else dfinal
    others = grad, output, gates, states, dfinal, ctx.recompute, ctx.backend, needs_grad[0]
    gradients = torch.ops.mdlstm.wavefront_backward(*inputs, *others)
    pairs = zip(gradients, needs_grad, strict=True)
    return *(gradient if needs else None for gradient, needs in pairs), *no_gradients


def _flops(x: Shape, weight_ih: Shape, weight_hh: Shape | None, *_: Any, **__: Any) -> int:
    """Operations of the products W x and U_d h_d, from the shapes: 2·N·P·dirs·G·n·(C + D·n)."""
    return 2 * prod(x[:-1]) * (prod(weight_ih) + (0 if weight_hh is None else prod(weight_hh)))


def _backward_flops(x: Shape, weight_ih: Shape, weight_hh: Shape | None, *others: Any, **_: Any) -> int:
    """Operations of the gradients of W, U_d, h_d and, if wanted, x; and of the gates computed again."""
    recurrent = 0 if weight_hh is None else prod(weight_hh)
    recompute: bool = others[-3]
    wants_dx: bool = others[-1]
    again = _flops(x, weight_ih, weight_hh) if recompute else 0
    return 2 * prod(x[:-1]) * ((1 + wants_dx) * prod(weight_ih) + 2 * recurrent) + again


def register_flops() -> None:
    """Let `torch.utils.flop_counter` count matrix products if it is imported; importing it here is slow."""
    counter = sys.modules.get("torch.utils.flop_counter")
    if counter is not None and torch.ops.mdlstm.wavefront not in counter.flop_registry:
        counter.register_flop_formula(torch.ops.mdlstm.wavefront)(_flops)
        counter.register_flop_formula(torch.ops.mdlstm.wavefront_backward)(_backward_flops)


torch.library.impl("mdlstm::wavefront", "default", _wavefront)
torch.library.impl("mdlstm::wavefront_backward", "default", _wavefront_backward)
torch.library.register_fake("mdlstm::wavefront", _wavefront_fake)
torch.library.register_fake("mdlstm::wavefront_backward", _wavefront_backward_fake)
torch.library.register_autograd("mdlstm::wavefront", _operator_backward, setup_context=_save_for_backward)
