"""The sweep on a CPU, compiled by Numba (`mdlstm_tk.backends.cpu.kernels`).

It computes in float32 or float64. float16 and bfloat16 are converted to float32 on the way in, and results
are rounded on the way out.

Compiled code is cached on disk (Numba's `NUMBA_CACHE_DIR` chooses the folder), so only the first call with
a new cell waits for the compiler. What depends only on shapes is a `Plan`, which later calls look up.

Arrays are cleared, copied and added by NumPy and `memset`, on this thread. torch would wake its own threads
for that, which would then keep the cores busy that the sweep is to share.
"""

from __future__ import annotations

import ctypes
import mmap
import sys
from collections.abc import Sequence
from functools import cache, lru_cache
from math import isqrt, prod
from operator import is_
from typing import Any, NamedTuple

import numpy as np
import torch
from numba import config
from torch import Tensor

from mdlstm_tk.backends import specialize
from mdlstm_tk.backends.cpu import cell_code, kernels, matmul, simd
from mdlstm_tk.backends.cpu.compile import compiled
from mdlstm_tk.backends.cpu.jobs import Jobs, make_jobs
from mdlstm_tk.backends.cpu.kernels import BLOCK
from mdlstm_tk.backends.cpu.records import Arrays, Layout, address, words
from mdlstm_tk.backends.cpu.threads import run_lanes
from mdlstm_tk.cells.cell import Cell
from mdlstm_tk.cells.step import CELL_PARAMETERS, Pass, pass_kernel, reads_hidden
from mdlstm_tk.errors import InputError
from mdlstm_tk.inputs import Gradients, SweepInputs, SweepResults, boundary_shape
from mdlstm_tk.states import line_counts, valid_lines
from mdlstm_tk.wavefront import Extents, ragged_extents

HUGE_PAGE = 2 << 20
# Blocks whose gradients are summed up before they are added to the total. With fewer of them, adding to the
# total would show in the time of a sweep.
MIN_PART_BLOCKS = 32
# Buffers of gradients, however many threads there are: these, or more if all together take a quarter of the
# numbers that forward keeps.
MIN_SUMS, MIN_DX, KEPT = 3, 2, 4


def forward(inputs: SweepInputs, save: bool = False, recompute: bool = False) -> SweepResults:
    """See `Engine`."""
    dtype, inputs = inputs.x.dtype, _converted(inputs)
    plan, x = _plan("forward", inputs, save), inputs.x
    layout, is_full = plan.layout, inputs.sizes is None
    shape = (*x.shape[:-1], layout.dirs, layout.units)
    # Padded positions of a ragged batch are never touched, so in small pages they take no memory.
    new = _new if is_full else Tensor.new_empty
    saved = layout.dirs, layout.places
    gates = new(x, (*saved, layout.gate_dim)) if save and not recompute else None
    states = new(x, (*saved, layout.states * layout.units)) if save else None
    output = _new(x, shape) if is_full else _zeros(x, shape)
    front = _front(inputs, plan, inputs.initial)
    _run(plan, inputs, front=front, output=output, gates=gates, states=states)
    return SweepResults(output.to(dtype), None if inputs.initial is None else front, gates, states)


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
    output, _, gates, states = (None if t is None else _plain(t) for t in results)
    plan, x = _plan("recompute" if gates is None else "backward", inputs, wants_dx), inputs.x
    layout, jobs = plan.layout, plan.jobs
    dfront = _front(inputs, plan, dfinal)
    dx = _zeros(x, (jobs.dx, *x.shape)) if wants_dx else None
    sums = _zeros(x, (jobs.sums, layout.dirs, layout.sums_size)) if wants_weights else None
    saved = {"output": output, "gates": gates, "states": states, "initial": inputs.initial}
    _run(plan, inputs, front=dfront, dx=dx, sums=sums, grad=_plain(grad), **saved)
    gradients: dict[str, Tensor] = {}
    if sums is not None:
        total, end = _total(sums), layout.depth * layout.padded
        parts = _parts(total[:, :end].unflatten(1, (layout.depth, layout.padded)), inputs)
        if layout.parameter_count:
            rows = total[:, end : end + layout.parameter_count].unflatten(1, (-1, layout.units))
            parts |= inputs.split_cell_parameters(rows)
        gradients |= {name: _copy(part) for name, part in parts.items()}
    if dx is not None:
        gradients["x"] = _total(dx)
    gradients = {name: g.to(dtype) for name, g in gradients.items()}
    return {**gradients, "initial": None if inputs.initial is None else dfront}


class Plan(NamedTuple):
    """Everything about a sweep that depends only on shapes."""

    kernel: Any  # the compiled function of a job
    cell: int  # address of a compiled function
    matmul: int  # the same
    layout: Layout  # what all jobs share
    layout_address: int
    jobs: Jobs
    weights: tuple[str, ...]  # the arrays of joined weights that the pass reads
    memory: Any  # what the layout holds addresses of, and its record


def _plan(kind: Pass, inputs: SweepInputs, option: bool) -> Plan:
    """The plan of a sweep; `option` is whether forward saves states, or backward computes dx."""
    x, weight_ih, valid = inputs.x, inputs.weight_ih, ragged_extents(inputs)
    sizes = x.dtype, x.shape, weight_ih.shape, inputs.signs, inputs.present
    key = kind, inputs.cell, option, torch.get_num_threads(), *sizes
    # Another batch has other valid extents.
    return _make_plan(*key) if valid is None else _make_plan.__wrapped__(*key, valid)


@lru_cache(maxsize=64)
def _make_plan(
    kind: Pass,
    cell: Cell,
    option: bool,
    threads: int,
    torch_dtype: torch.dtype,
    shape: tuple[int, ...],
    weights: tuple[int, ...],
    signs: tuple[int, ...],
    present: tuple[str, ...],
    valid: Extents | None = None,
) -> Plan:
    (batch, *extents, channels), (dirs, gate_dim, _), is_forward = shape, weights, kind == "forward"
    grid, ndim, states, positions = tuple(extents), len(extents), len(cell.states), prod(extents)
    units, dtype, itemsize = gate_dim // len(cell.gates(ndim)), str(torch_dtype)[6:], torch_dtype.itemsize
    lanes = simd.vector_length(itemsize)
    hidden_dim = ndim * units if cell.recurrent else 0
    depth, padded = hidden_dim + channels + 1, -(-gate_dim // lanes) * lanes
    t_padded = -(-(depth - 1) // lanes) * lanes
    columns = 0 if is_forward else hidden_dim + channels * option
    d_stride = -(-columns // lanes) * lanes
    parameter_count = units * sum(CELL_PARAMETERS[name](cell, ndim) for name in present)
    sums_size = _whole_lines(depth * padded + parameter_count)
    reads_h, spilled = reads_hidden(cell, ndim), pass_kernel(kind, cell, ndim, present).spilled

    rows = batch * positions if valid is None else sum(map(prod, valid))
    operations = 2 * depth * gate_dim * (1 if is_forward else 2)  # of a row
    most = None
    if not is_forward:
        kept = rows * dirs * (gate_dim + states * units)  # numbers that forward keeps
        sums, dx = dirs * sums_size, max(rows * channels, 1)
        most = max(MIN_SUMS, kept // (KEPT * sums)), max(MIN_DX, kept // (KEPT * dx))
    directions = tuple(signs[k : k + ndim] for k in range(0, len(signs), ndim))
    jobs = make_jobs(grid, batch, valid, directions, operations, threads, most)
    blocks = rows // BLOCK // len(jobs.lanes)
    part_blocks = max(MIN_PART_BLOCKS, isqrt(blocks))  # as many parts as blocks in each: the shortest sums
    part_blocks = part_blocks if blocks > part_blocks else 0

    scratch_parts = {
        "table_at": BLOCK * cell_code.words_per_line(ndim) * 8 // itemsize,
        "zeros_at": (1 + states) * units,
        "spill_at": len(spilled) * units,
        "operands_at": (1 if is_forward else 2) * BLOCK * depth,
        "products_at": BLOCK * padded,
    }
    if is_forward:
        scratch_parts["gates_row_at"] = gate_dim
        scratch_parts["states_at"] = 0 if option else 2 * jobs.longest * states * units
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
    steps = words(tuple(sign * stride for sign, stride in zip(signs, dirs * strides, strict=True)))
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
        t_padded=t_padded,
        longest=jobs.longest,
        columns=columns,
        d_stride=d_stride,
        sums_size=sums_size,
        part_blocks=part_blocks,
        scratch=scratch,
        **offsets,
    )
    record = words(layout)
    joined = {"forward": ("weights",), "backward": ("weights_t",), "recompute": ("weights", "weights_t")}
    return Plan(
        kernel=_generic(kernels.forward if is_forward else kernels.backward, dtype).ctypes,
        cell=_cell(kind, cell, ndim, present, dtype).address,
        matmul=_generic(matmul.matmul, dtype).address,
        layout=layout,
        layout_address=address(record),
        jobs=jobs,
        weights=joined[kind],
        memory=(record, line_table, steps),
    )


@cache
def _generic(template: Any, dtype: str) -> Any:
    """A function that is the same for all cells, as Numba's C function."""
    name = f"{template.__name__}_{dtype}"
    return compiled(specialize(template, name, ZERO=np.dtype(dtype).type(0)), name)


@cache
def _cell(kind: Pass, cell: Cell, ndim: int, present: tuple[str, ...], dtype: str) -> Any:
    """The C function of a cell on a block of rows."""
    kernel, states = pass_kernel(kind, cell, ndim, present), len(cell.states)
    function = cell_code.block_function(kernel, ndim, states, np.dtype(dtype).type(0))
    return compiled(function, f"cell_{dtype}_{ndim}d", f"{states}\n{kernel.text}")


def try_compiler(device: torch.device) -> None:
    """See `Engine`: compile a kernel that every sweep needs anyway."""
    if config.DISABLE_JIT:
        raise InputError("the environment variable NUMBA_DISABLE_JIT is set, unset it")
    _generic(matmul.matmul, "float32")


def _run(plan: Plan, inputs: SweepInputs, **arrays: Tensor | None) -> None:
    """Join the weights, and run all jobs of a sweep.

    Args:
        plan, inputs: of the sweep.
        arrays: those of `Arrays` that this pass has, beside x, parameters, weights and scratch.
    """
    x, layout = inputs.x, plan.layout
    arrays |= {"x": x, "parameters": inputs.cell_parameters()}
    # Zeros beside the weights: where there is no b, and in the last columns of whole vectors. Products with
    # the subnormal numbers that memory may hold are slow.
    shapes = {
        "weights": (layout.dirs, layout.depth, layout.padded),
        "weights_t": (layout.dirs, layout.gate_dim, layout.t_padded),
    }
    for name in plan.weights:
        arrays[name] = weights = _zeros(x, shapes[name])
        parts = _parts(weights if name == "weights" else weights.mT[:, : layout.depth - 1], inputs)
        for weight, part in parts.items():
            np.copyto(part.numpy(), getattr(inputs, weight).detach().numpy())
    arrays["scratch"] = x.new_empty(len(plan.jobs.lanes) * layout.scratch)
    pointers = {name: 0 if t is None else _pointer(t) for name, t in arrays.items()}
    record = words(Arrays(plan.cell, plan.matmul, **pointers))
    kernel, arrays_address, layout_address = plan.kernel, address(record), plan.layout_address

    def run(job: int) -> None:
        kernel(arrays_address, layout_address, job)

    run_lanes(run, plan.jobs.lanes, plan.jobs.order, (plan, record, arrays))


def _parts(joined: Tensor, inputs: SweepInputs) -> dict[str, Tensor]:
    """Where the weights are in an array (dirs, K, G·n), or (dirs, K − 1, G·n) without b: views of it."""
    (_, gate_dim, channels), ndim, units = inputs.weight_ih.shape, inputs.ndim, inputs.units
    hidden_dim = 0 if inputs.weight_hh is None else ndim * units
    columns = joined[..., :gate_dim]
    parts = {"weight_ih": columns[:, hidden_dim : hidden_dim + channels].mT}
    if inputs.weight_hh is not None:
        parts["weight_hh"] = columns[:, :hidden_dim].unflatten(1, (ndim, units)).mT
    if inputs.bias is not None and columns.shape[1] > hidden_dim + channels:
        parts["bias"] = columns[:, -1]
    return parts


def _front(inputs: SweepInputs, plan: Plan, start: Tensor | None) -> Tensor | None:
    """The front of a sweep, which starts as initial states or as gradients of the final ones."""
    if start is None:
        has_front = inputs.initial is not None or plan.jobs.is_banded
        return _zeros(inputs.x, boundary_shape(inputs)) if has_front else None
    if inputs.sizes is None:
        return _copy(start)
    return start.masked_fill(~valid_lines(inputs.grid, inputs.sizes)[..., None, None, None], 0)


def _converted(inputs: SweepInputs) -> SweepInputs:
    """The inputs as the kernels read them."""
    tensors = [None if t is None else _plain(t) for t in inputs.tensors]
    return inputs if all(map(is_, tensors, inputs.tensors)) else inputs.with_tensors(tensors)


def _plain(tensor: Tensor) -> Tensor:
    """The tensor as kernels read it: contiguous, in float32 or float64, without a negative bit."""
    if tensor.dtype in (torch.float16, torch.bfloat16):
        tensor = tensor.float()
    return tensor.contiguous().resolve_neg()


def _pointer(tensor: Tensor) -> int:
    """The address of a tensor's memory.

    Raises:
        InputError: it has none, as a subclass that wraps other tensors.
    """
    start = tensor.data_ptr()
    if not start and tensor.numel():
        raise InputError(f"kernels cannot read the memory of a {type(tensor).__name__}")
    return start


def _new(like: Tensor, shape: Sequence[int]) -> Tensor:
    """Memory for a result. If it is large, the system is asked for pages of 2 MiB: touching fresh memory in
    pages of 4 KiB takes a quarter of the time of training at 1, 512×512, n 32."""
    tensor = like.new_empty(shape)
    if tensor.nbytes >= HUGE_PAGE and sys.platform == "linux":
        first = tensor.data_ptr()
        start = -(-first // HUGE_PAGE) * HUGE_PAGE
        length = first + tensor.nbytes - start
        if length >= HUGE_PAGE:
            _libc().madvise(ctypes.c_void_p(start), ctypes.c_size_t(length), mmap.MADV_HUGEPAGE)
    return tensor


@cache
def _libc() -> ctypes.CDLL:
    return ctypes.CDLL(None)


def _zeros(like: Tensor, shape: Sequence[int]) -> Tensor:
    tensor = _new(like, shape)
    ctypes.memset(tensor.data_ptr(), 0, tensor.nbytes)
    return tensor


def _copy(tensor: Tensor) -> Tensor:
    """A contiguous copy."""
    return torch.from_numpy(tensor.detach().numpy().copy())


def _total(parts: Tensor) -> Tensor:
    """The sum of parts[0], parts[1], …, one after another."""
    return parts[0] if len(parts) == 1 else torch.from_numpy(parts.numpy().sum(axis=0))


def _whole_lines(count: int) -> int:
    """`count` numbers, rounded up to whole cache lines."""
    return -(-count // 16) * 16
