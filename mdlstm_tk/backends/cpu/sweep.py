"""The sweep on a CPU, compiled by Numba (`mdlstm_tk.backends.cpu.kernels`).

It computes in float32 or float64. float16 and bfloat16 are converted to float32 on the way in, and results
are rounded on the way out.

Compiled code is cached on disk (Numba's `NUMBA_CACHE_DIR` chooses the folder), so only the first call with
a new cell waits for the compiler. Everything that depends only on shapes is looked up.
"""

from __future__ import annotations

from operator import is_

import torch
from torch import Tensor

from mdlstm_tk.backends.cpu import memory
from mdlstm_tk.backends.cpu.plan import Plan, get_plan
from mdlstm_tk.backends.cpu.records import address, words
from mdlstm_tk.backends.cpu.threads import run_chains
from mdlstm_tk.inputs import Gradients, SweepInputs, SweepResults, boundary_shape
from mdlstm_tk.states import valid_lines


def forward(inputs: SweepInputs, save: bool = False, recompute: bool = False) -> SweepResults:
    """See `Engine`."""
    dtype, inputs = inputs.x.dtype, _converted(inputs)
    plan, x = get_plan("forward", inputs, saves_states=save), inputs.x
    rows, dirs, units = plan.layout.places, plan.layout.dirs, plan.layout.units
    shape = (*x.shape[:-1], dirs, units)
    output = memory.new(x, shape) if plan.jobs.is_full else memory.zeros(x, shape)
    front = _front(inputs, plan, inputs.initial)
    # Padded positions of a ragged batch are never touched, so in small pages they take no memory.
    new = memory.new if plan.jobs.is_full else Tensor.new_empty
    gates = new(x, (dirs, rows, plan.layout.gate_dim)) if save and not recompute else None
    states = new(x, (dirs, rows, plan.layout.states * units)) if save else None
    own = {"front": front, "output": output, "gates": gates, "states": states}
    _run(plan, inputs, own)
    final = None if inputs.initial is None else front
    return SweepResults(_rounded(output, dtype), final, gates, states)


def backward(
    inputs: SweepInputs,
    results: SweepResults,
    grad: Tensor,
    dfinal: Tensor | None,
    wants_dx: bool,
    wants_weights: bool,
) -> Gradients:
    """See `Engine`."""
    dtype, inputs = inputs.x.dtype, _converted(inputs)
    output, _, gates, states = (None if t is None else memory.plain(t) for t in results)
    assert output is not None
    plan = get_plan("recompute" if gates is None else "backward", inputs, wants_dx=wants_dx)
    x, layout = inputs.x, plan.layout
    dfront = _front(inputs, plan, dfinal)
    dx = memory.zeros(x, (plan.jobs.buffers, *x.shape)) if wants_dx else None
    sums = memory.zeros(x, (plan.jobs.sum_count, layout.dirs, layout.sums_size)) if wants_weights else None
    gradients = _new_gradients(plan, inputs) if wants_weights else {}
    own = {"front": dfront, "dx": dx, "sums": sums, **{f"d{name}": g for name, g in gradients.items()}}
    given = {"output": output, "gates": gates, "states": states, "initial": inputs.initial}
    _run(plan, inputs, own, grad=memory.plain(grad), **given)
    if (of_cell := gradients.pop("parameters", None)) is not None:
        parts = inputs.split_cell_parameters(of_cell)
        gradients |= {name: memory.copy(part) for name, part in parts.items()}
    if dx is not None:
        gradients["x"] = memory.total(dx)
    gradients = {name: None if g is None else _rounded(g, dtype) for name, g in gradients.items()}
    if inputs.initial is not None:
        gradients["initial"] = dfront
    return gradients


def _rounded(result: Tensor, dtype: torch.dtype) -> Tensor:
    """`result.to(dtype)`, which takes a microsecond even where there is nothing to do."""
    return result if result.dtype == dtype else result.to(dtype)


def _run(plan: Plan, inputs: SweepInputs, own: dict[str, Tensor | None], **given: Tensor | None) -> None:
    """Pack the weights, run all jobs of a sweep, and write the gradients of weights.

    Args:
        plan, inputs: of the sweep.
        own: the arrays of `Plan.counts` that this pass has taken memory for.
        given: others that it has.
    """
    x, counts = inputs.x, plan.counts
    given |= {"x": x, "weight_hh": inputs.weight_hh, "weight_ih": inputs.weight_ih, "bias": inputs.bias}
    given["parameters"] = inputs.cell_parameters()
    temporary = x.new_empty(sum(counts[name] for name in plan.temporary))
    addresses, start = {name: memory.own(tensor) for name, tensor in own.items()}, memory.own(temporary)
    for name in plan.temporary:
        addresses[name] = start
        start += counts[name] * x.itemsize
    for name, tensor in given.items():
        addresses[name] = memory.pointer(name, tensor, x.dtype, counts[name])
    record = words((plan.cell, plan.matmul, *[addresses.get(name, 0) for name in counts]))
    run_jobs, kernel = plan.run_jobs, plan.kernel
    arrays_address, layout_address = address(record), plan.layout_address
    for pack in plan.packs:
        pack(arrays_address, layout_address)
    if len(plan.jobs.order) == 1:
        run_jobs(kernel, arrays_address, layout_address, plan.jobs.order[0])
    else:

        def run(job: int) -> None:
            run_jobs(kernel, arrays_address, layout_address, job)

        run_chains(run, plan.jobs.chains, plan.jobs.order, (plan, record, own, given, temporary))
    if addresses.get("sums"):
        plan.unpack(arrays_address, layout_address)


def _front(inputs: SweepInputs, plan: Plan, start: Tensor | None) -> Tensor | None:
    """The front of a sweep, which starts as initial states or as gradients of the final ones."""
    if start is None:
        has_front = inputs.initial is not None or plan.jobs.is_tiled
        return memory.zeros(inputs.x, boundary_shape(inputs)) if has_front else None
    if inputs.sizes is None:
        return memory.copy(start)
    return start.masked_fill(~valid_lines(inputs.grid, inputs.sizes)[..., None, None, None], 0)


def _new_gradients(plan: Plan, inputs: SweepInputs) -> Gradients:
    """Memory for the gradients of the weights that are there, and of the cell's parameters."""
    layout = plan.layout
    weights = {name: getattr(inputs, name) for name in ("weight_ih", "weight_hh", "bias")}
    gradients: Gradients = {name: w.new_empty(w.shape) for name, w in weights.items() if w is not None}
    if layout.parameter_count:
        shape = layout.dirs, layout.parameter_count // layout.units, layout.units
        gradients["parameters"] = inputs.x.new_empty(shape)
    return gradients


def _converted(inputs: SweepInputs) -> SweepInputs:
    """The inputs as the kernels read them."""
    tensors = [None if t is None else memory.plain(t) for t in inputs.tensors]
    return inputs if all(map(is_, tensors, inputs.tensors)) else inputs.with_tensors(tensors)
