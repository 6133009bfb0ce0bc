"""What depends only on the shapes of a sweep on the CPU, so that a warm call looks it up."""

from __future__ import annotations

from math import isqrt
from typing import Any, NamedTuple

import numpy as np
import torch

from mdlstm_tk._util.caches import BoundedCache
from mdlstm_tk.backends.cpu import simd
from mdlstm_tk.backends.cpu.backward_kernel import backward_scratch
from mdlstm_tk.backends.cpu.compile import get_kernel
from mdlstm_tk.backends.cpu.kernels import BLOCK, forward_scratch
from mdlstm_tk.backends.cpu.threads import Partition, partition
from mdlstm_tk.backends.faces import line_table
from mdlstm_tk.backends.tables import SweepRows, SweepTables
from mdlstm_tk.cells import get_cell
from mdlstm_tk.cells.lowering import Pass
from mdlstm_tk.cells.step import parameter_rows

# Blocks whose gradients are summed up before they are added to the total. With fewer of them, adding to the
# total would show in the time of a sweep.
MIN_PART_BLOCKS = 32


class PlanKey(NamedTuple):
    """The shapes and options that a plan depends on.

    Attributes:
        pass_kind: which kernel runs.
        cell: the name of the cell.
        dtype: float32 or float64.
        batch, grid, channels, gate_dim: N, the extents, C, G·n.
        signs: the directions, dirs · D signs.
        peephole, layer_norm: whether the cell has them.
        threads: the largest number of threads.
        states: whether there are initial and final states.
    """

    pass_kind: Pass
    cell: str
    dtype: torch.dtype
    batch: int
    grid: tuple[int, ...]
    channels: int
    gate_dim: int
    signs: tuple[int, ...]
    peephole: bool
    layer_norm: bool
    threads: int
    states: bool


class Plan(NamedTuple):
    """How a kernel is run.

    Attributes:
        tables: of the grid; holds the memory that `table_addresses` points at.
        table_addresses: order, starts, predecessors and successors.
        lines: what `faces.line_table` returns.
        entry: the compiled kernel.
        dims: N, P, T, dirs, D, n, C, G·n, as the kernels take them; N and P those of `SweepRows`.
        hidden_dim: D·n, or 0 if the cell is not recurrent.
        depth: K, the length of an operand.
        padded: G·n in whole vectors.
        longest: rows of the longest wavefront.
        panel, lanes: NR and the number of elements of a vector.
        scratch: numbers of scratch memory that a thread needs.
        sums_size: numbers in the sums of a direction, the gradients of w_cat and of the cell's parameters.
        part_blocks: the number of blocks in a part of these sums; 0 if everything is one part.
        packed: numbers that the packed weights take.
        operations: floating-point operations of the products of one direction.
        division: how threads share the work.
        dtype_tag: 0 in the dtype.
    """

    tables: SweepTables
    table_addresses: tuple[int, int, int, int]
    lines: torch.Tensor
    entry: Any
    dims: tuple[int, ...]
    hidden_dim: int
    depth: int
    padded: int
    longest: int
    panel: int
    lanes: int
    scratch: int
    sums_size: int
    part_blocks: int
    packed: int
    operations: int
    division: Partition
    dtype_tag: np.floating[Any]


def make_plan(key: PlanKey, rows: SweepRows) -> Plan:
    """The plan for a sweep; for `plans` to keep, unless the batch is ragged."""
    cell, ndim = get_cell(key.cell), len(key.grid)
    units = key.gate_dim // len(cell.gates(ndim))
    dtype_name = str(key.dtype).removeprefix("torch.")
    tables, batch = rows.tables, rows.batch
    wide = tables.order.dtype == torch.int64
    options = key.peephole, key.layer_norm, wide, key.states
    kernel = get_kernel(key.pass_kind, dtype_name, key.cell, ndim, *options)
    positions, fronts, dirs = tables.positions, len(tables.counts), len(key.signs) // ndim
    lanes, panel = simd.vector_length(key.dtype.itemsize), simd.panel_width(key.dtype.itemsize)
    hidden_dim = ndim * units if cell.recurrent else 0
    depth = hidden_dim + key.channels + 1
    padded = -(-key.gate_dim // lanes) * lanes
    sums = parameter_rows(ndim, len(cell.gates(ndim)))
    parameter_count = units * (
        key.peephole * sums["peephole"] + key.layer_norm * (sums["norm_weight"] + sums["norm_bias"])
    )
    scratch = forward_scratch(ndim, units, key.gate_dim, depth, lanes, kernel.spilled)
    if key.pass_kind != "forward":
        scratch = backward_scratch(ndim, units, key.gate_dim, depth, lanes, kernel.spilled, parameter_count)
    blocks = rows.count // BLOCK
    part_blocks = max(MIN_PART_BLOCKS, isqrt(blocks))  # as many parts as blocks in each: the shortest sums
    operations = 2 * rows.count * depth * key.gate_dim
    return Plan(
        tables=tables,
        table_addresses=(
            tables.order.data_ptr(),
            tables.starts[1:].data_ptr(),  # the kernels count wavefronts from the first one with positions
            tables.predecessors.data_ptr(),
            tables.successors.data_ptr(),
        ),
        lines=torch.tensor(line_table(key.grid)),
        entry=kernel.entry,
        dims=(batch, positions, fronts, dirs, ndim, units, key.channels, key.gate_dim),
        hidden_dim=hidden_dim,
        depth=depth,
        padded=padded,
        longest=tables.longest * batch,
        panel=panel,
        lanes=lanes,
        scratch=scratch,
        sums_size=-(-(depth * padded + parameter_count) // 16) * 16,  # whole cache lines
        part_blocks=part_blocks if blocks > part_blocks else 0,
        packed=dirs * -(-key.gate_dim // panel) * panel * depth,
        operations=operations,
        division=partition(operations, fronts, dirs, key.threads),
        dtype_tag=np.float32(0) if key.dtype == torch.float32 else np.float64(0),
    )


plans: BoundedCache[PlanKey, Plan] = BoundedCache(64 << 20)
