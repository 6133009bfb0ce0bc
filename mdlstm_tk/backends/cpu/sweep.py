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

from mdlstm_tk.backends.boundary import valid_lines
from mdlstm_tk.backends.cpu import memory
from mdlstm_tk.backends.cpu.plan import Plan, get_plan
from mdlstm_tk.backends.cpu.records import address, words
from mdlstm_tk.backends.cpu.threads import run_chains
from mdlstm_tk.backends.inputs import Gradients, SweepInputs, SweepResults, boundary_shape


def forward(inputs: SweepInputs, save: bool = False, recompute: bool = False) -> SweepResults:
    """See `Engine`."""
    dtype, inputs = inputs.x.dtype, _converted(inputs)
    plan, x = get_plan("forward", inputs, saves_states=save), inputs.x
    rows, dirs, units = plan.sizes.places, plan.sizes.dirs, plan.sizes.units
    shape = (*x.shape[:-1], dirs, units)
    output = memory.new(x, shape) if plan.jobs.is_full else memory.zeros(x, shape)
    front = _front(inputs, plan, inputs.initial)
    # Padded positions of a ragged batch are never touched, so in small pages they take no memory.
    new = memory.new if plan.jobs.is_full else Tensor.new_empty
    gates = new(x, (dirs, rows, plan.sizes.gate_dim)) if save and not recompute else None
    states = new(x, (dirs, rows, plan.sizes.states * units)) if save else None
    _run(plan, inputs, weights=_pack(plan, inputs), front=front, output=output, gates=gates, states=states)
    final = None if inputs.initial is None else front
    return SweepResults(output.to(dtype), final, gates, states)


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
    x, sizes = inputs.x, plan.sizes
    dfront = _front(inputs, plan, dfinal)
    dx = memory.zeros(x, (plan.jobs.buffers, *x.shape)) if wants_dx else None
    sums = memory.zeros(x, (plan.jobs.slots, sizes.dirs, sizes.sums_size)) if wants_weights else None
    _run(
        plan,
        inputs,
        weights=_pack(plan, inputs) if gates is None else None,
        weights_t=_pack(plan, inputs, transposed=True),
        front=dfront,
        grad=memory.plain(grad),
        output=output,
        gates=gates,
        states=states,
        initial=inputs.initial,
        dx=dx,
        sums=sums,
    )
    gradients = {} if sums is None else _split_sums(plan, inputs, memory.total(sums))
    if dx is not None:
        gradients["x"] = memory.total(dx)
    gradients = {name: None if g is None else g.to(dtype) for name, g in gradients.items()}
    if inputs.initial is not None:
        gradients["initial"] = dfront
    return gradients


def _run(plan: Plan, inputs: SweepInputs, **arrays: Tensor | None) -> None:
    """Run all jobs of a sweep; `arrays` are those of `Plan.counts` that a pass has."""
    arrays["x"], arrays["parameters"] = inputs.x, inputs.cell_parameters()
    arrays["scratch"] = inputs.x.new_empty(len(plan.jobs.chains) * plan.sizes.scratch)
    counts, dtype = plan.counts.items(), inputs.x.dtype
    pointers = [memory.pointer(name, arrays.get(name), dtype, count) for name, count in counts]
    record = words((plan.cell, plan.matmul, *pointers))
    kernel, arrays_address, sizes_address = plan.kernel, address(record), plan.sizes_address
    if len(plan.jobs.order) == 1:
        kernel(arrays_address, sizes_address, plan.jobs.order[0])
        return

    def run(job: int) -> None:
        kernel(arrays_address, sizes_address, job)

    run_chains(run, plan.jobs.chains, plan.jobs.order, (plan, record, arrays))


def _front(inputs: SweepInputs, plan: Plan, start: Tensor | None) -> Tensor | None:
    """The front of a sweep, which starts as initial states or as gradients of the final ones."""
    if start is None:
        has_front = inputs.initial is not None or plan.jobs.is_tiled
        return memory.zeros(inputs.x, boundary_shape(inputs)) if has_front else None
    if inputs.sizes is None:
        return memory.copy(start)
    return start.masked_fill(~valid_lines(inputs.grid, inputs.sizes)[..., None, None, None], 0)


def _split_sums(plan: Plan, inputs: SweepInputs, sums: Tensor) -> Gradients:
    """The gradients of weights and of the cell's parameters from `sums`, (dirs, sums_size), each in memory
    of its own."""
    sizes, dirs, gate_dim, units = plan.sizes, plan.sizes.dirs, plan.sizes.gate_dim, plan.sizes.units
    # The gradient of w_cat is (K, padded), and its rows are those of h_1, …, h_D, x and 1.
    row, start, shape = sizes.padded, sizes.sums_size, inputs.weight_ih.shape
    parts = {"weight_ih": sums.as_strided(shape, (start, 1, row), sizes.hidden_dim * row)}
    if inputs.weight_hh is not None:
        parts["weight_hh"] = sums.as_strided(inputs.weight_hh.shape, (start, units * row, 1, row))
    if inputs.bias is not None:
        parts["bias"] = sums.as_strided((dirs, gate_dim), (start, 1), (sizes.depth - 1) * row)
    if sizes.parameter_count:
        shape = torch.Size((dirs, sizes.parameter_count // units, units))
        rows = sums.as_strided(shape, (start, units, 1), sizes.depth * row)
        parts |= inputs.split_cell_parameters(rows)
    return {name: memory.copy(part) for name, part in parts.items()}


def _pack(plan: Plan, inputs: SweepInputs, transposed: bool = False) -> Tensor:
    """The weights as `matmul.pack` or `matmul.pack_transposed` writes them."""
    x, sizes = inputs.x, plan.sizes
    packed = x.new_empty(plan.counts["weights_t" if transposed else "weights"])
    weights = {"weight_hh": sizes.hidden_dim, "weight_ih": sizes.channels, "bias": 1}
    pointers = [memory.pointer("packed", packed)]
    for name, columns in weights.items():
        count = sizes.dirs * sizes.gate_dim * columns
        pointers.append(memory.pointer(name, getattr(inputs, name), x.dtype, count))
    kernel = plan.pack_transposed if transposed else plan.pack
    kernel(*pointers, plan.sizes_address)
    return packed


def _converted(inputs: SweepInputs) -> SweepInputs:
    """The inputs as the kernels read them."""
    tensors = [None if t is None else memory.plain(t) for t in inputs.tensors]
    return inputs if all(map(is_, tensors, inputs.tensors)) else inputs.with_tensors(tensors)
