"""Plans: everything about a sweep on the CPU that depends only on shapes, looked up by later calls."""

from __future__ import annotations

from math import isqrt, prod
from typing import Any, NamedTuple

from mdlstm_tk.backends.cpu import simd
from mdlstm_tk.backends.cpu.cell_code import words_per_line
from mdlstm_tk.backends.cpu.compile import Generic, compile_cell, generic_kernel
from mdlstm_tk.backends.cpu.kernels import BLOCK
from mdlstm_tk.backends.cpu.records import Layout, address, words
from mdlstm_tk.backends.cpu.threads import thread_limit
from mdlstm_tk.backends.cpu.tiles import Buffers, Jobs, Samples, make_jobs
from mdlstm_tk.cells.passes import Pass, pass_kernel, reads_hidden
from mdlstm_tk.cells.step import CELL_PARAMETERS
from mdlstm_tk.inputs import SweepInputs
from mdlstm_tk.states import line_counts
from mdlstm_tk.wavefront import Extents, ragged_extents

# Blocks whose gradients are summed up before they are added to the total. With fewer of them, adding to the
# total would show in the time of a sweep.
MIN_PART_BLOCKS = 32
PACKED: dict[Generic, str] = {"pack": "weights", "pack_transposed": "weights_t"}  # which array they write
PACKS: dict[Pass, tuple[Generic, ...]] = {
    "forward": ("pack",),
    "backward": ("pack_transposed",),
    "recompute": ("pack", "pack_transposed"),
}
# Buffers of gradients, however many threads there are: these, or more if all together take a quarter of the
# numbers that forward keeps.
MIN_SUMS, MIN_DX, KEPT = 3, 2, 4
MAX_PLANS = 64


class Plan(NamedTuple):
    """The functions, layout and jobs of a sweep.

    Attributes:
        run_jobs: the compiled function `kernels.run_jobs`.
        kernel: address of the function of a job.
        packs: those that pack the weights before.
        unpack: that which writes the gradients of the weights afterwards; None for forward.
        cell, matmul: addresses of compiled functions.
        layout: what all jobs share.
        layout_address: where that lies in memory.
        jobs: the jobs.
        temporary: the arrays that live as long as the sweep.
        counts: how many numbers kernels take each of the tensors in `Arrays` for, in that order.
        memory: what the layout holds addresses of, and their record.
    """

    run_jobs: Any
    kernel: int
    packs: tuple[Any, ...]
    unpack: Any
    cell: int
    matmul: int
    layout: Layout
    layout_address: int
    jobs: Jobs
    temporary: tuple[str, ...]
    counts: dict[str, int]
    memory: Any


plans: dict[tuple[Any, ...], Plan] = {}


def get_plan(
    pass_kind: Pass, inputs: SweepInputs, *, saves_states: bool = False, wants_dx: bool = False
) -> Plan:
    """The plan of a sweep.

    Args:
        pass_kind: which kernel runs.
        inputs: of the sweep, in float32 or float64.
        saves_states: whether forward saves states for backward.
        wants_dx: whether backward computes the gradient of x.

    Raises:
        KernelError: a kernel cannot be compiled.
    """
    x, weight_ih, threads = inputs.x, inputs.weight_ih, thread_limit()
    valid = ragged_extents(inputs)
    if valid is not None:  # not cached: another batch will have other sizes
        return _make_plan(pass_kind, inputs, saves_states, wants_dx, threads, valid)
    options = pass_kind, inputs.cell, saves_states, wants_dx, threads
    key = *options, x.dtype, x.shape, weight_ih.shape, inputs.signs, inputs.present
    plan = plans.get(key)
    if plan is None:
        valid = None if len(x) else ()
        plan = _make_plan(pass_kind, inputs, saves_states, wants_dx, threads, valid)
        if len(plans) >= MAX_PLANS:
            plans.clear()
        plans[key] = plan
    return plan


def _make_plan(
    pass_kind: Pass,
    inputs: SweepInputs,
    saves_states: bool,
    wants_dx: bool,
    threads: int,
    valid: Extents | None,
) -> Plan:
    cell, grid, ndim, is_forward = inputs.cell, inputs.grid, inputs.ndim, pass_kind == "forward"
    (batch, *_, channels), (dirs, gate_dim, _) = inputs.x.shape, inputs.weight_ih.shape
    states, units, positions = len(cell.states), inputs.units, prod(grid)
    dtype, itemsize = str(inputs.x.dtype).removeprefix("torch."), inputs.x.itemsize
    graph = pass_kernel(pass_kind, cell, ndim, inputs.present)
    compiled = compile_cell(graph, dtype, ndim, states, cell.name)

    lanes, panel = simd.vector_length(itemsize), simd.panel_width(itemsize)
    hidden_dim = ndim * units if cell.recurrent else 0
    depth, padded = hidden_dim + channels + 1, -(-gate_dim // lanes) * lanes
    columns = 0 if is_forward else hidden_dim + channels * wants_dx
    d_stride = -(-columns // lanes) * lanes
    parameter_count = units * sum(CELL_PARAMETERS[name](cell, ndim) for name in inputs.present)
    sums_size = _whole_lines(depth * padded + parameter_count)
    reads_h = reads_hidden(cell, ndim)

    operations = 2 * depth * gate_dim * (1 if is_forward else 2)  # of a row
    whole = Samples(grid, 0, batch, valid)
    most = None
    if not is_forward:
        kept = whole.rows * dirs * (gate_dim + states * units)  # numbers that forward keeps
        sums, dx = dirs * sums_size, max(whole.rows * channels, 1)
        most = Buffers(max(MIN_SUMS, kept // (KEPT * sums)), max(MIN_DX, kept // (KEPT * dx)))
    jobs = make_jobs(whole, inputs.directions, operations, threads, most)
    blocks = whole.rows // BLOCK // len(jobs.chains)
    part_blocks = max(MIN_PART_BLOCKS, isqrt(blocks))  # as many parts as blocks in each: the shortest sums
    part_blocks = part_blocks if blocks > part_blocks else 0

    scratch_parts = {
        "table_at": BLOCK * words_per_line(ndim) * 8 // itemsize,
        "zeros_at": (1 + states) * units,
        "spill_at": len(graph.spilled) * units,
        "operands_at": (1 if is_forward else 2) * BLOCK * depth,
        "products_at": BLOCK * padded,
    }
    if is_forward:
        scratch_parts["gates_row_at"] = gate_dim
        scratch_parts["states_at"] = 0 if saves_states else 2 * jobs.longest * states * units
    else:
        scratch_parts["da_at"] = 2 * BLOCK * padded
        scratch_parts["d_operands_at"] = 2 * jobs.longest * d_stride
        scratch_parts["dh_read_at"] = 2 * jobs.longest * ndim * units * reads_h
        scratch_parts["dstates_at"] = 2 * jobs.longest * ndim * states * units
        scratch_parts["parameter_sums_at"] = parameter_count
        scratch_parts["part_at"] = sums_size if part_blocks else 0
    offsets, scratch = {}, 0
    for name, size in scratch_parts.items():
        offsets[name] = scratch
        scratch += _whole_lines(size)
    line_numbers, strides = line_counts(grid), [prod(grid[d + 1 :]) for d in range(ndim)]
    lines = [(grid[d] * strides[d], strides[d], sum(line_numbers[:d])) for d in range(ndim)]
    line_table = words(tuple(number for line in lines for number in line))
    steps = words(tuple(sign * stride for sign, stride in zip(inputs.signs, dirs * strides, strict=True)))
    layout = Layout(
        dirs=dirs,
        positions=positions,
        places=positions * batch,
        lines=sum(line_numbers),
        line_table=address(line_table),
        steps=address(steps),
        ndim=ndim,
        units=units,
        channels=channels,
        gate_dim=gate_dim,
        states=states,
        recurrent=int(cell.recurrent),
        reads_h=int(reads_h),
        parameter_count=parameter_count,
        hidden_dim=hidden_dim,
        depth=depth,
        padded=padded,
        panel=panel,
        longest=jobs.longest,
        columns=columns,
        d_stride=d_stride,
        sums_size=sums_size,
        sum_count=jobs.sum_count,
        part_blocks=part_blocks,
        scratch=scratch,
        **offsets,
    )
    record = words(layout)
    of_x, of_h = layout.places * channels, layout.places * dirs * units
    of_boundary = batch * layout.lines * dirs * (1 + states) * units
    counts = {
        "x": of_x,
        "weight_hh": dirs * hidden_dim * gate_dim,
        "weight_ih": dirs * gate_dim * channels,
        "bias": dirs * gate_dim,
        "parameters": dirs * parameter_count,
        "weights": dirs * -(-gate_dim // panel) * panel * depth,
        "front": of_boundary,
        "output": of_h,
        "gates": dirs * layout.places * gate_dim,
        "states": of_h * states,
        "scratch": len(jobs.chains) * scratch,
        "grad": of_h,
        "initial": of_boundary,
        "weights_t": dirs * -(-columns // panel) * panel * gate_dim,
        "dx": jobs.buffers * of_x,
        "sums": jobs.sum_count * dirs * sums_size,
    }
    counts |= {f"d{name}": counts[name] for name in ("weight_hh", "weight_ih", "bias", "parameters")}
    packs = PACKS[pass_kind]
    return Plan(
        run_jobs=generic_kernel("run_jobs", dtype).ctypes,
        kernel=generic_kernel("forward" if is_forward else "backward", dtype).address,
        packs=tuple(generic_kernel(name, dtype).ctypes for name in packs),
        unpack=None if is_forward else generic_kernel("unpack", dtype).ctypes,
        cell=compiled.address,
        matmul=generic_kernel("matmul", dtype).address,
        layout=layout,
        layout_address=address(record),
        jobs=jobs,
        temporary=("scratch", *(PACKED[name] for name in packs)),
        counts=counts,
        memory=(record, line_table, steps),
    )


def _whole_lines(count: int) -> int:
    """`count` numbers, rounded up to whole cache lines."""
    return -(-count // 16) * 16
