"""The sweep wavefront by wavefront in plain torch operations, on any device; torch differentiates it.

All directions run in one sweep. Their tensors are laid out in visiting order, so a wavefront is a
contiguous slice, and a direction is only another order of visiting: see `mdlstm_tk.wavefront`. float16 and
bfloat16 are computed in float32, and h is rounded at each position.

Notation: N batch, R rows, K of one wavefront, L lines, G gates, S states beside h, n units, D axes, C
features.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from mdlstm_tk.cells.graph import OPERATIONS, Kernel, Value
from mdlstm_tk.cells.step import pass_kernel
from mdlstm_tk.inputs import (
    DIFFERENTIABLE,
    Gradients,
    SweepInputs,
    SweepResults,
    state_dtype,
    without_autocast,
)
from mdlstm_tk.states import boundary_rows, from_boundary_rows
from mdlstm_tk.wavefront import sweep_rows, unvisited, visited


@without_autocast
def sweep(inputs: SweepInputs) -> tuple[Tensor, Tensor | None]:
    """h (N, *grid, dirs, n), and the final states (N, F, dirs, 1 + S, n) if there are initial ones."""
    dtype, precise, units, rows = inputs.x.dtype, state_dtype(inputs.x), inputs.units, sweep_rows(inputs)
    inputs = inputs.with_tensors([None if t is None else t.to(precise) for t in inputs.tensors])
    cell, state_count = inputs.cell, 1 + inputs.state_count
    weight = inputs.weight_ih.transpose(1, 2)  # (dirs, C, G·n)
    if inputs.weight_hh is not None:  # a = (h_1 | … | h_D | x) @ weight + b
        weight = torch.cat([inputs.weight_hh.transpose(2, 3).flatten(1, 2), weight], dim=1)
    bias = weight.new_zeros(()) if inputs.bias is None else inputs.bias[:, None]
    boundary = weight.new_zeros(len(weight), len(rows.ends), state_count * units)
    if inputs.initial is not None:
        boundary = boundary_rows(inputs.initial, rows)
    kernel = Kernel(pass_kernel("forward", cell, inputs.ndim, inputs.present).stores[:state_count])
    parameters = inputs.cell_parameters()
    fixed = {} if parameters is None else {"parameter": parameters.unsqueeze(1).unbind(2)}  # (dirs, 1, n)

    wave, waves = boundary[:, :0], []  # (dirs, K, (1 + S)·n), h first
    parts = visited(inputs.x, rows).split(rows.counts, dim=1), boundary.split(rows.entering, dim=1)
    for index, x, entering in zip(rows.previous, *parts, strict=True):
        before = torch.cat([wave, entering], dim=1)
        previous = [before.index_select(1, of_axis) for of_axis in index]
        h = [state[..., :units] for state in previous] if cell.recurrent else []
        a = torch.baddbmm(bias, torch.cat([*h, x], dim=-1), weight)  # (dirs, K, G·n)
        split = [state.unflatten(-1, (state_count, units)).unbind(-2) for state in previous]
        slots = fixed | {
            "a": a.unflatten(-1, (-1, units)).unbind(-2),
            "h_prev": [states[0] for states in split],
            "state_prev": [row for states in split for row in states[1:]],
        }
        h_here, *others = evaluate(kernel, slots, slots["a"][0])
        if dtype != precise:  # round h, but not its gradient
            h_here = h_here + (h_here.to(dtype).to(precise) - h_here).detach()
        wave = torch.cat([h_here, *others], dim=-1)
        waves.append(wave)

    swept = torch.cat(waves, dim=1)  # (dirs, R, (1 + S)·n)
    output = unvisited(swept[..., :units].to(dtype), rows)
    output = output.reshape(*inputs.x.shape[:-1], len(weight), units)
    if inputs.initial is None:
        return output, None
    return output, from_boundary_rows(swept[:, rows.ends], rows, inputs)


def forward(inputs: SweepInputs, save: bool = False, recompute: bool = False) -> SweepResults:
    """See `mdlstm_tk.backends.Engine`. Nothing is saved: `backward` sweeps again."""
    with torch.no_grad():
        return SweepResults(*sweep(inputs))


def backward(
    inputs: SweepInputs,
    results: SweepResults,
    grad: Tensor,
    dfinal: Tensor | None,
    wants_dx: bool,
    wants_weights: bool,
) -> Gradients:
    """See `mdlstm_tk.backends.Engine`."""
    wanted = {"x": wants_dx, "initial": True}
    with _recorded():
        return gradients(inputs, [wanted.get(name, wants_weights) for name in DIFFERENTIABLE], grad, dfinal)


@without_autocast
def gradients(
    inputs: SweepInputs,
    wanted: Sequence[bool],
    grad: Tensor | None,
    dfinal: Tensor | None,
    create_graph: bool = False,
) -> Gradients:
    """The gradients of the inputs that are wanted, from those of h and of the final states."""
    # If they are to be differentiated, of views, as one input may come from another: x of a second call of
    # a layer comes from the weights, too. The gradient of the weights must leave out their way through x,
    # which autograd follows.
    leaves = {
        name: tensor.view_as(tensor) if create_graph else tensor.detach().requires_grad_()
        for name, tensor, is_wanted in zip(DIFFERENTIABLE, inputs.tensors, wanted, strict=True)
        if is_wanted and tensor is not None
    }
    with torch.enable_grad():
        outputs = sweep(inputs._replace(**leaves))  # type: ignore[arg-type]
    pairs = [(y, dy) for y, dy in zip(outputs, (grad, dfinal), strict=True) if dy is not None]
    ys, dys = zip(*pairs, strict=True)
    options = {"create_graph": create_graph, "materialize_grads": True}
    found = torch.autograd.grad(ys, list(leaves.values()), dys, **options)
    return dict(zip(leaves, found, strict=True))


def _recorded() -> Any:
    """Let autograd record also inside an operator, below which torch switches it off."""
    included, excluded = (
        torch._C._dispatch_tls_local_include_set(),
        torch._C._dispatch_tls_local_exclude_set(),
    )
    for key in (torch._C.DispatchKey.AutogradFunctionality, torch._C.DispatchKey.ADInplaceOrView):
        excluded = excluded.remove(key)
    return torch._C._ForceDispatchKeyGuard(included, excluded)


# Operations that take a Python number beside a tensor; the rest are methods of tensors.
ARITHMETIC = ("add", "subtract", "multiply", "divide")


def evaluate(kernel: Kernel, slots: Mapping[str, Sequence[Tensor]], like: Tensor) -> list[Tensor]:
    """Compute the values of all stores of a recorded graph, in their order, in the shape of `like`.

    Args:
        kernel: the graph.
        slots: the rows (…, n) of each array that is loaded.
        like: a tensor with the dtype, device and shape of the results.
    """
    results: dict[Value, Any] = {}

    def tensor(value: Any) -> Tensor:
        return value if isinstance(value, Tensor) else like.new_full((), value)

    for value in kernel.values:
        args = [results[arg] for arg in value.args]
        if value.op == "load":
            results[value] = slots[value.slot][value.row]
        elif value.op == "constant":
            results[value] = value.number
        elif value.op == "mean":
            results[value] = tensor(args[0]).mean(dim=-1, keepdim=True)
        elif value.op in ARITHMETIC and any(isinstance(arg, Tensor) for arg in args):
            results[value] = OPERATIONS[value.op].compute(*args)
        else:
            results[value] = OPERATIONS[value.op].compute(*map(tensor, args))
    return [tensor(results[store.value]).expand_as(like) for store in kernel.stores]
