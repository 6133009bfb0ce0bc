"""The sweep of a layer: a plain autograd function in eager mode, and the operator `mdlstm::wavefront`.

Eager calls need no operator: the function calls a backend, and its backward calls the backend's gradient.
Whatever must see one node instead of what is inside it (`torch.compile`, `torch.export` and with it ONNX,
tracing, dispatch modes such as the FLOP counter, meta tensors) gets the operator, which does the same.
Where a transform must see inside (`torch.func`, forward-mode differentiation, second derivatives), the
sweep of `mdlstm_tk.backends.torch` runs in plain autograd.
"""

from __future__ import annotations

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
from mdlstm_tk.backends.dispatch import OPERATOR_BACKENDS, engine
from mdlstm_tk.backends.inputs import (
    DIFFERENTIABLE,
    SCHEMA,
    TENSORS,
    Gradients,
    SweepInputs,
    SweepResults,
    boundary_shape,
    check_devices,
    check_inputs,
    check_tensor,
    state_dtype,
)
from mdlstm_tk.backends.torch import sweep as torch_sweep
from mdlstm_tk.cells import get_cell
from mdlstm_tk.cells.lowering import cell_of_graph, graph_name
from mdlstm_tk.flops import register_flops

torch.library.define(
    "mdlstm::wavefront",
    f"({SCHEMA}, bool save, bool recompute, str backend) -> (Tensor, Tensor, Tensor, Tensor)",
)
torch.library.define(
    "mdlstm::wavefront_backward",
    f"({SCHEMA}, Tensor grad, Tensor output, Tensor gates, Tensor states, Tensor? dfinal, bool recompute, "
    f"str backend, bool wants_dx, bool wants_weights=True) -> "
    f"({', '.join(['Tensor'] * len(DIFFERENTIABLE))})",
)
FIELDS = len(SweepInputs._fields)
SAVED = (*TENSORS, "output", "gates", "states")  # for backward
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
    traced = torch.compiler.is_compiling() or torch.jit.is_tracing()  # type: ignore[attr-defined,no-untyped-call]
    if not traced:
        check_inputs(inputs)
    if backend == "reference":
        with _without_autocast(inputs.x):
            return reference.forward(inputs)
    if needs_plain_autograd():
        return _in_plain_autograd(inputs)
    save = wants_gradients(inputs.tensors)
    if _is_captured(*inputs.tensors, inputs.sizes):
        register_flops()
        save = save and not torch.jit.is_tracing()  # type: ignore[attr-defined,no-untyped-call]
        output, final, _, _ = torch.ops.mdlstm.wavefront(*_named(inputs), save, recompute, backend)
        return output, None if inputs.initial is None else final
    if not save:
        results = _forward(inputs, backend, False, False)
        return results.output, results.final
    how, tensors = (inputs.without_tensors(), backend, recompute), (*inputs.tensors, inputs.sizes)
    output, final = _Sweep.apply(*how, *tensors)  # type: ignore[no-untyped-call]
    return output, final


def needs_plain_autograd() -> bool:
    """Tell whether a transform is active that cannot see into an operator."""
    return torch._C._are_functorch_transforms_active() or forward_ad._current_level >= 0


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


def _named(inputs: SweepInputs) -> tuple[Any, ...]:
    """The arguments of an operator, which takes no cell, but its `graph_name`."""
    if torch.compiler.is_dynamo_compiling():  # which cannot follow how a name is made
        return (*inputs[:-1], _name_of_registered(inputs.cell.name, inputs.ndim, inputs.present))
    return (*inputs[:-1], graph_name(inputs.cell, inputs.ndim, inputs.present))


@torch.compiler.assume_constant_result  # type: ignore[untyped-decorator]
def _name_of_registered(cell: str, ndim: int, present: tuple[str, ...]) -> str:
    return graph_name(get_cell(cell), ndim, present)


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
        ctx: Any, template: SweepInputs, backend: str, recompute: bool, *tensors: Tensor | None
    ) -> tuple[Tensor, Tensor | None]:
        inputs = template.with_tensors(tensors)
        results = _forward(inputs, backend, True, recompute)
        ctx.how = template, graph_name(inputs.cell, inputs.ndim, inputs.present), backend, recompute
        ctx.set_materialize_grads(False)
        saved = *tensors, results.output, results.gates, results.states
        ctx.save_for_backward(*saved)
        ctx.kinds = _kinds(saved)
        return results.output, results.final

    @staticmethod
    def backward(ctx: Any, grad: Tensor | None, dfinal: Tensor | None) -> tuple[Any, ...]:
        (template, cell, backend, recompute), saved = ctx.how, ctx.saved_tensors
        if _kinds(saved) != ctx.kinds:  # hooks of saved tensors may return others
            for name, tensor, kind in zip(SAVED, saved, ctx.kinds, strict=True):
                if tensor is not None:
                    check_tensor(name, tensor, *kind)
        *tensors, output, gates, states = saved
        inputs, needs_grad = template.with_tensors(tensors), ctx.needs_input_grad[3:-1]
        if torch.is_grad_enabled() or is_batched(grad) or is_batched(dfinal):
            with torch.enable_grad():
                return None, None, None, *_differentiable_gradients(inputs, grad, dfinal, needs_grad), None
        if _is_captured(*saved, grad, dfinal):
            shapes = _shapes(inputs, True, recompute)
            gates = _in_shape(gates, output, *shapes["gates"])
            results = SweepResults(output, None, gates, _in_shape(states, output, *shapes["states"]))
            named = *inputs[:-1], cell
            gradients = _captured_gradients(named, results, grad, dfinal, needs_grad, recompute, backend)
        else:
            results = SweepResults(output, None, gates, states)
            gradients = _backward(inputs, results, grad, dfinal, backend, *_wanted(needs_grad))
        pairs = zip(DIFFERENTIABLE, needs_grad, strict=True)
        return None, None, None, *(gradients.get(name) if needs else None for name, needs in pairs), None


def _kinds(tensors: Sequence[Tensor | None]) -> list[tuple[Shape, torch.dtype] | None]:
    """The shapes and dtypes of tensors."""
    return [None if t is None else (t.shape, t.dtype) for t in tensors]


def is_batched(grad: Tensor | None) -> bool:
    """Tell whether several gradients come together, as `is_grads_batched=True` sends them."""
    tests = torch._C._functorch.is_batchedtensor, torch._C._functorch.is_legacy_batchedtensor
    return grad is not None and any(is_one(grad) for is_one in tests)


def _forward(inputs: SweepInputs, backend: str, *options: bool) -> SweepResults:
    """Run the backend; the options are `save` and `recompute`."""
    with _without_autocast(inputs.x):
        return engine(backend, inputs.x.device, inputs.x.dtype).forward(inputs, *options)


def _backward(
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
    with _without_autocast(inputs.x):
        run = engine(backend, inputs.x.device, inputs.x.dtype)
        return run.backward(inputs, results, grad, dfinal, *wanted)


def _wanted(needs_grad: Sequence[bool]) -> tuple[bool, bool]:
    """If gradients are wanted of x, and of any parameter, from those that the inputs need."""
    return needs_grad[0], any(needs_grad[1 : DIFFERENTIABLE.index("initial")])


def _dense(grad: Tensor | None, like: Tensor) -> Tensor:
    """A gradient, contiguous."""
    if grad is None:
        return torch.zeros_like(like)
    return (grad if grad.layout == torch.strided else grad.to_dense()).contiguous()


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
    inputs = _with_cell(arguments)
    sizes = inputs.sizes
    if sizes is not None and is_readable(sizes):
        sizes = sizes.cpu()
    return inputs._replace(sizes=sizes)


def _with_cell(arguments: Sequence[Any]) -> SweepInputs:
    """The reverse of `_named`, for the first arguments of an operator, which gets signs as a list."""
    inputs = SweepInputs(*arguments[:FIELDS])
    name: Any = inputs.cell
    cell = cell_of_graph(name, inputs.ndim, inputs.present)
    return inputs._replace(signs=tuple(inputs.signs), cell=cell)


def _wavefront(*arguments: Any) -> tuple[Tensor, ...]:
    """The operator.

    Returns:
        h, the final states, gates and states for the backend's backward, in the shapes of `_shapes`; empty
        where there are none.
    """
    inputs, (save, recompute, backend) = _unpack(arguments), arguments[FIELDS:]
    check_inputs(inputs)
    results = _forward(inputs, backend, save, recompute)
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
    inputs, (save, recompute, backend) = _with_cell(arguments), arguments[FIELDS:]
    _check_captured(inputs, backend)
    shapes = _shapes(inputs, save, recompute).values()
    return tuple(inputs.x.new_empty(shape, dtype=dtype) for shape, dtype in shapes)


def _check_captured(inputs: SweepInputs, backend: str, **others: Tensor | None) -> None:
    """Check what can be checked before the shapes are known."""
    choice("backend", backend, OPERATOR_BACKENDS)
    check_dtype(inputs.x.dtype, "the dtype of x")
    check_devices(inputs, **others)


def _wavefront_backward(*arguments: Any) -> tuple[Tensor, ...]:
    """The gradients in the order of `DIFFERENTIABLE`; empty where an input is None or its gradient is not
    wanted."""
    inputs = _unpack(arguments)
    grad, output, gates, states, dfinal, recompute, backend, *wanted = arguments[FIELDS:]
    check_inputs(inputs)
    others = {"grad": grad, "output": output, "states": states, "gates": gates, "dfinal": dfinal}
    check_devices(inputs, **others)
    shapes = _shapes(inputs, True, recompute)
    shapes |= {"grad": shapes["output"], "dfinal": shapes["final"]}
    for name, tensor in others.items():
        if tensor is not None:
            check_tensor(name, tensor, *shapes[name])
    results = SweepResults(output, None, None if recompute else gates, states)
    gradients = _backward(inputs, results, grad, dfinal, backend, *_with_default(wanted))
    pairs = zip(DIFFERENTIABLE, _has_gradient(wanted), strict=True)
    in_order = (gradients.get(name) if has else None for name, has in pairs)
    return tuple(grad.new_empty(0) if g is None else g.contiguous() for g in in_order)


def _wavefront_backward_fake(*arguments: Any) -> tuple[Tensor, ...]:
    inputs = _with_cell(arguments)
    grad, output, gates, states, dfinal, _, backend, *wanted = arguments[FIELDS:]
    others = {"grad": grad, "output": output, "gates": gates, "states": states, "dfinal": dfinal}
    _check_captured(inputs, backend, **others)
    pairs = zip(inputs.tensors, _has_gradient(wanted), strict=True)
    return tuple(t.new_empty(t.shape) if has and t is not None else grad.new_empty(0) for t, has in pairs)


def _with_default(wanted: Sequence[bool]) -> tuple[bool, bool]:
    """`wants_dx` and `wants_weights` of the operator, which gets no argument that equals its default."""
    wants_dx, wants_weights = (*wanted, True)[:2]
    return wants_dx, wants_weights


def _has_gradient(wanted: Sequence[bool]) -> list[bool]:
    """For each of `DIFFERENTIABLE`, true if the operator's backward returns its gradient."""
    wants_dx, wants_weights = _with_default(wanted)
    return [{"x": wants_dx, "initial": True}.get(name, wants_weights) for name in DIFFERENTIABLE]


def _save_for_backward(ctx: Any, inputs: Sequence[Any], output: tuple[Tensor, ...]) -> None:
    ctx.template = SweepInputs(*inputs[:FIELDS]).without_tensors()
    ctx.saved, *ctx.options = inputs[FIELDS:]
    ctx.set_materialize_grads(False)  # zeros in place of the gates' gradient would be as large as the gates
    h, _, gates, states = output
    ctx.save_for_backward(*inputs[: len(TENSORS)], h, gates, states)


def _operator_backward(ctx: Any, grad: Tensor | None, dfinal: Tensor | None, *_: Any) -> Any:
    *tensors, output, gates, states = ctx.saved_tensors
    named, needs_grad = ctx.template.with_tensors(tensors), ctx.needs_input_grad[: len(DIFFERENTIABLE)]
    no_gradients = (None,) * (FIELDS - len(DIFFERENTIABLE) + 3)  # of the other arguments
    if torch.is_grad_enabled():
        return *_differentiable_gradients(_with_cell(named), grad, dfinal, needs_grad), *no_gradients
    if not ctx.saved:  # the graph was captured where no gradient was wanted
        output, _, gates, states = torch.ops.mdlstm.wavefront(*named, True, *ctx.options)
    results = SweepResults(output, None, gates, states)
    gradients = _captured_gradients(named, results, grad, dfinal, needs_grad, *ctx.options)
    pairs = zip(DIFFERENTIABLE, needs_grad, strict=True)
    return *(gradients[name] if needs else None for name, needs in pairs), *no_gradients


def _captured_gradients(
    named: Sequence[Any],
    results: SweepResults,
    grad: Tensor | None,
    dfinal: Tensor | None,
    needs_grad: Sequence[bool],
    *options: Any,
) -> Gradients:
    """`_backward` as one node of a graph: `results` have the shapes of `_shapes`, and the options are
    `recompute` and `backend`."""
    output, _, gates, states = results
    grad = torch.zeros_like(output) if grad is None else grad
    dfinal = None if named[DIFFERENTIABLE.index("initial")] is None else dfinal
    others = grad, output, gates, states, dfinal, *options, *_wanted(needs_grad)
    gradients = torch.ops.mdlstm.wavefront_backward(*named, *others)
    return dict(zip(DIFFERENTIABLE, gradients, strict=True))


torch.library.impl("mdlstm::wavefront", "default", _wavefront)
torch.library.impl("mdlstm::wavefront_backward", "default", _wavefront_backward)
torch.library.register_fake("mdlstm::wavefront", _wavefront_fake)
torch.library.register_fake("mdlstm::wavefront_backward", _wavefront_backward_fake)
torch.library.register_autograd("mdlstm::wavefront", _operator_backward, setup_context=_save_for_backward)
