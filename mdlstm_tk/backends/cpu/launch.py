"""Run the fused sweep on the CPU (`mdlstm_tk.backends.cpu.kernels`).

It computes in float32 or float64. float16 and bfloat16 are converted to float32 on the way in, and results
are rounded on the way out.

Compiled code is cached on disk, beside the sources or in the user's cache folder (Numba's `NUMBA_CACHE_DIR`
chooses another one), so only the first call with a new cell waits for the compiler.

A warm call of `layer(x)` runs Python code of these modules: layer, operator, backends.inputs, this one,
packed_weights and threads. Everything that depends only on shapes is looked up.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from mdlstm_tk.backends.cpu.compile import get_packer
from mdlstm_tk.backends.cpu.packed_weights import packed_weights
from mdlstm_tk.backends.cpu.plan import Plan, PlanKey, make_plan, plans
from mdlstm_tk.backends.cpu.platform import HUGE_PAGE, use_huge_pages
from mdlstm_tk.backends.cpu.threads import Member, partition, run
from mdlstm_tk.backends.faces import Faces
from mdlstm_tk.backends.inputs import SweepInputs, state_dtype
from mdlstm_tk.backends.tables import sweep_rows
from mdlstm_tk.cells.lowering import Pass

BARRIER_BYTES = 128  # more than a cache line, so that no two barriers share one
NO_STATES = (0,) * 5  # addresses where there are no initial and final states
NO_STATE_GRADIENTS = (0,) * 7
PLAN_BYTES = 4096  # about what a plan takes beside its tables, which it may share with other plans


def forward(
    inputs: SweepInputs, save: bool = False, recompute: bool = False, first: Faces | None = None
) -> tuple[Tensor, Tensor, Tensor, Faces | None]:
    """Run the sweep, from the initial states `first` if they are given.

    Returns:
        h (N, *grid, dirs, n) and, if `save`, what `backward` needs: the activated gates, or with layer norm
        the pre-activations, (dirs, rows, G·n), and c (dirs, rows, n), in visiting order. Both are empty
        otherwise, and so are the gates if `recompute`. With `first` also the final states, else None.
    """
    dtype = inputs.x.dtype
    plan = _plan("forward", inputs, first is not None)
    batch, positions, _, dirs, _, units, _, gate_dim = plan.dims
    # While training, weights change at every step, and packing them is a small part of it.
    packed = (
        _pack(plan, inputs) if save else packed_weights(plan.packed, inputs, lambda: _pack(plan, inputs))
    )
    inputs = _converted(inputs)
    x = inputs.x
    rows = positions * batch
    output = _new(x, *x.shape[:-1], dirs, units)
    sizes = extents = None
    if inputs.sizes is not None and rows < x.shape[:-1].numel():
        sizes, extents = inputs.sizes.contiguous(), torch.tensor(inputs.grid)
    gates = _new(x, dirs, rows, gate_dim) if save and not recompute else None
    c_rows = 0 if save else plan.longest  # without backward, c of two wavefronts is enough
    c = _new(x, dirs, 2 * c_rows if c_rows else rows, units)
    given = None if first is None else Faces(*map(_plain, first))
    last = None if given is None else Faces(*map(torch.zeros_like, given))
    division = plan.division
    scratch = x.new_empty(division.threads, plan.scratch)
    counters = _barriers(division.groups) if division.members > 1 else None
    shared = [
        *_addresses(x, packed, *inputs[4:7]),
        *(_addresses(*given, *last, plan.lines) if given and last else NO_STATES), *plan.table_addresses,
        *_addresses(output, sizes, extents, gates, c),
    ]  # fmt: skip
    numbers = [x.shape[0], *plan.dims, c_rows, plan.panel, plan.lanes]

    def arguments(member: Member) -> list[int]:
        own = _part_address(counters, member.group), _part_address(scratch, member.thread)
        return [*shared, *own, *numbers, *member]

    run(plan.entry, division, arguments)
    if dtype != output.dtype:
        output = output.to(dtype)
        last = None if last is None else last._replace(h=last.h.to(dtype))
    kept_gates = output.new_empty(0) if gates is None else gates
    return output, kept_gates, c if save else output.new_empty(0), last


def backward(
    inputs: SweepInputs,
    grad: Tensor,
    output: Tensor,
    saved_gates: Tensor,
    saved_c: Tensor,
    wants_dx: bool = True,
    first: Faces | None = None,
    d_last: Faces | None = None,
) -> list[Tensor | None]:
    """The gradients of x (if `wants_dx`), weight_ih, weight_hh, bias and the cell's parameters; and with
    `first` those of its h and c.

    Args:
        inputs: as for `forward`.
        grad: (N, *grid, dirs, n) gradient of the output.
        output, saved_gates, saved_c: what `forward` returned with `save`; if the gates are empty, they are
            computed again.
        wants_dx: whether the gradient of x is needed.
        first: the initial states that `forward` was given.
        d_last: the gradient of the final states, given together with `first`.
    """
    dtype = inputs.x.dtype
    grad, output, saved_gates, saved_c = map(_plain, (grad, output, saved_gates, saved_c))
    inputs = _converted(inputs)
    x = inputs.x
    recompute = saved_gates.numel() == 0
    plan = _plan("recompute" if recompute else "backward", inputs, first is not None)
    _, _, fronts, dirs, ndim, units, channels, _ = plan.dims
    columns = plan.hidden_dim + (channels if wants_dx else 0)
    w_packed = _pack(plan, inputs) if recompute else None
    w_t_packed = _pack_transposed(plan, inputs, columns)
    division = plan.division
    if wants_dx and x.numel():
        # Each group has a dx of its own; together they may take a quarter of what forward saved.
        max_groups = 1 + (saved_gates.numel() + saved_c.numel()) // (4 * x.numel())
        division = partition(plan.operations, fronts, dirs, torch.get_num_threads(), max_groups)
    groups, threads = division.groups, division.threads
    dx = [x.new_zeros(x.shape) for _ in range(groups)] if wants_dx else []
    stride = -(-columns // plan.lanes) * plan.lanes
    d_operand = x.new_empty(groups, 2, plan.longest, stride)
    dc = x.new_empty(groups, 2, plan.longest, ndim * units)
    sums = x.new_zeros(threads, dirs, plan.sums_size)
    part = x.new_zeros(threads, plan.sums_size) if plan.part_blocks else None
    scratch = x.new_empty(threads, plan.scratch)
    counters = _barriers(groups) if division.members > 1 else None
    states: list[Tensor] = []
    if first is not None and d_last is not None:
        given = [_plain(face) for face in (*first, *d_last)]
        d_first = [torch.zeros_like(face) for face in given[:2]]
        states = [*given[:2], plan.lines, *given[2:], *d_first]
    shared = [
        *_addresses(grad, x, w_t_packed, w_packed, *inputs[4:7]),
        *(_addresses(*states) if states else NO_STATE_GRADIENTS), *plan.table_addresses,
        *_addresses(output, saved_gates, saved_c),
    ]  # fmt: skip
    numbers = [
        *plan.dims, plan.longest, columns, plan.sums_size, plan.part_blocks, plan.panel, plan.lanes
    ]  # fmt: skip

    def arguments(member: Member) -> list[int]:
        group, thread = member.group, member.thread
        own_dx = dx[group].data_ptr() if wants_dx else 0
        of_group = [_part_address(tensor, group) for tensor in (d_operand, dc, counters)]
        of_thread = [_part_address(tensor, thread) for tensor in (sums, part, scratch)]
        return [*shared, own_dx, *of_group, *of_thread, *numbers, *member]

    run(plan.entry, division, arguments)
    for other in dx[1:]:
        dx[0].add_(other)
    gradients = _split_sums(plan, inputs, sums[0] if threads == 1 else sums.sum(dim=0))
    results = (dx[0] if wants_dx else None, *gradients)
    rounded = [None if gradient is None else gradient.to(dtype) for gradient in results]
    return [*rounded, *(d.to(face.dtype) for d, face in zip(states[5:], first or (), strict=True))]


def _split_sums(plan: Plan, inputs: SweepInputs, sums: Tensor) -> list[Tensor | None]:
    """The gradients of weight_ih, weight_hh, bias and the cell's parameters, each in memory of its own,
    from the sums (dirs, sums_size) of all threads."""
    _, _, _, dirs, ndim, units, channels, gate_dim = plan.dims
    size, row, start = plan.sums_size, plan.padded, plan.depth * plan.padded
    # The gradient of w_cat is (K, padded gate_dim), and its rows are those of h_1, …, h_D, x and 1.
    dw_hh = (dirs, ndim, gate_dim, units), (size, units * row, 1, row)
    dw_ih = (dirs, gate_dim, channels), (size, 1, row), plan.hidden_dim * row
    db = (dirs, gate_dim), (size, 1), start - row
    gradients: list[Tensor | None] = [
        sums.as_strided(*dw_ih),
        None if inputs.weight_hh is None else sums.as_strided(*dw_hh),
        None if inputs.bias is None else sums.as_strided(*db),
    ]
    for parameter in inputs.parameters:
        if parameter is None:
            gradients.append(None)
        else:
            end = start + parameter[0].numel()
            gradients.append(sums[:, start:end].view(parameter.shape))
            start = end
    return [None if g is None else g.clone(memory_format=torch.contiguous_format) for g in gradients]


def _plan(pass_kind: Pass, inputs: SweepInputs, states: bool) -> Plan:
    shape = inputs.x.shape
    key = PlanKey(
        pass_kind,
        inputs.cell,
        state_dtype(inputs.x),
        shape[0],
        tuple(shape[1:-1]),
        shape[-1],
        inputs.weight_ih.shape[1],
        inputs.signs,
        inputs.peephole is not None,
        inputs.norm_weight is not None,
        torch.get_num_threads(),
        states,
    )
    if inputs.sizes is not None:
        rows = sweep_rows(inputs)
        assert rows.valid_mask is None  # the operator never runs kernels inside a transform
        if rows.ragged:
            return make_plan(key, rows)  # not kept: another batch will have other sizes
    plan = plans.get(key)
    if plan is None:
        plan = make_plan(key, sweep_rows(inputs))
        plans.add(key, plan, plan.tables.nbytes + PLAN_BYTES)
    return plan


def _converted(inputs: SweepInputs) -> SweepInputs:
    """The inputs as the kernels read them: contiguous, in float32 or float64."""
    return SweepInputs._make((*map(_plain, inputs[:7]), *inputs[7:]))


def _plain(tensor: Tensor | None) -> Any:
    if tensor is None:
        return None
    if tensor.dtype in (torch.float16, torch.bfloat16):
        tensor = tensor.float()
    return tensor.contiguous()


def _pack(plan: Plan, inputs: SweepInputs) -> Tensor:
    """w_cat as `packing.pack` lays it out."""
    w_ih, w_hh, bias = map(_plain, inputs[1:4])
    packed: Tensor = w_ih.new_empty(plan.packed)
    pack = get_packer("pack", plan.dtype_tag.dtype.name)
    pack(plan.dtype_tag, *_addresses(packed, w_hh, w_ih, bias), *plan.dims[3:], plan.panel)
    return packed


def _pack_transposed(plan: Plan, inputs: SweepInputs, columns: int) -> Tensor:
    """The first `columns` columns of w_catᵀ as `packing.pack_transposed` lays them out."""
    _, _, _, dirs, ndim, units, _, gate_dim = plan.dims
    packed = inputs.weight_ih.new_empty(dirs * -(-columns // plan.panel) * plan.panel * gate_dim)
    pack = get_packer("pack_transposed", plan.dtype_tag.dtype.name)
    channels = columns - plan.hidden_dim
    weights = _addresses(packed, inputs.weight_hh, inputs.weight_ih)
    pack(plan.dtype_tag, *weights, dirs, ndim, units, channels, gate_dim, plan.panel)
    return packed


def _new(like: Tensor, *shape: int) -> Tensor:
    """Memory for a result."""
    tensor = like.new_empty(shape)
    return use_huge_pages(tensor) if tensor.nbytes >= HUGE_PAGE else tensor


def _barriers(groups: int) -> Tensor:
    """A zero for the barrier of each group."""
    return torch.zeros(groups, BARRIER_BYTES // 8, dtype=torch.int64)


def _part_address(tensor: Tensor | None, k: int) -> int:
    """Where `tensor[k]` lies in memory, 0 for None."""
    return 0 if tensor is None else tensor.data_ptr() + k * tensor.stride(0) * tensor.itemsize


def _addresses(*tensors: Tensor | None) -> list[int]:
    """Where tensors lie in memory, 0 for None. The caller keeps them alive."""
    return [0 if tensor is None else tensor.data_ptr() for tensor in tensors]
