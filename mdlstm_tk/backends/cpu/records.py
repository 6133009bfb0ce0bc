"""The arguments of the kernels: records of int64 that kernels read by name.

A kernel takes the addresses of three records: the arrays of a call, the layout that all its jobs share, and
the job itself. Arrays are given by their addresses, 0 for None.

Notation
    N, P, D, F        batch, positions of the grid, axes, lines of all faces (`mdlstm_tk.states`)
    n, C, G, S, R     hidden units, input features, gates, states beside h, rows of the cell's parameters
    K                 length of an operand, hidden_dim + C + 1
    V, T              rows (positions of all its samples) and wavefronts of a band
"""

from __future__ import annotations

from array import array
from typing import NamedTuple

from mdlstm_tk.backends.cpu.intrinsics import record_loader


class Arrays(NamedTuple):
    """The arrays of a call of `kernels.forward` or `kernels.backward`; 0 where it has none."""

    cell: int  # C function, see `cell_code`
    matmul: int  # C function
    x: int = 0  # (N, P, C)
    parameters: int = 0  # (dirs, R, n)
    weights: int = 0  # w_cat (dirs, K, padded); backward: if it computes pre-activations again
    front: int = 0  # (N, F, dirs, 1 + S, n), see `kernels`: the states, or gradients, between bands
    output: int = 0  # (N, P, dirs, n)
    gates: int = 0  # (dirs, N·P, G·n), if they are kept
    states: int = 0  # (dirs, N·P, S·n), if they are kept
    scratch: int = 0  # memory of all lanes
    grad: int = 0  # (N, P, dirs, n), gradient of the output
    initial: int = 0  # (N, F, dirs, 1 + S, n)
    weights_t: int = 0  # w_catᵀ without b, (dirs, G·n, t_padded)
    dx: int = 0  # (buffers, N, P, C), zeros to add to
    sums: int = 0  # (sum_count, dirs, sums_size), zeros to add gradients of weights and parameters to


class Layout(NamedTuple):
    """Sizes that all jobs of a sweep share. Fields that end in `_at` tell where something starts in the
    memory of a lane, in numbers; those of the other pass are 0."""

    dirs: int
    positions: int  # P
    places: int  # N·P
    lines: int  # F
    line_table: int  # (D, 3): E_d·S_d, S_d, and the first line of axis d, of the whole grid
    steps: int  # (dirs, D): from a position to the one before it along each axis, subtract this
    ndim: int  # D
    units: int  # n
    channels: int  # C
    gate_dim: int  # G·n
    states: int  # S
    recurrent: int  # 1 or 0
    reads_h: int  # whether the equations read h of the predecessors
    parameter_count: int  # R·n
    hidden_dim: int  # D·n, or 0 if the cell is not recurrent
    depth: int  # K
    padded: int  # gate_dim in whole vectors
    t_padded: int  # depth - 1 in whole vectors
    longest: int  # rows of the longest wavefront of a band
    columns: int  # columns of the operands' gradients: hidden_dim, and C more if that of x is wanted
    d_stride: int  # columns in whole vectors
    sums_size: int  # numbers in the sums of a direction: of weights (K, padded), then of parameters (R, n)
    part_blocks: int  # blocks whose sums are added up before they are added to the total; 0: all
    scratch: int  # numbers in the memory of a lane
    table_at: int  # a block's table, in int64, see `cell_code`
    zeros_at: int  # (1 + S)·n zeros
    spill_at: int  # memory of the cell
    operands_at: int  # operands of a block (K each); backward: of two
    products_at: int  # pre-activations of a block (padded each)
    gates_row_at: int = 0  # takes the gates of a row if they are not saved
    states_at: int = 0  # (2, longest, S·n), the states of two wavefronts in turn if they are not saved
    da_at: int = 0  # gradients of the pre-activations of two blocks (padded each)
    d_operands_at: int = 0  # (2, longest, d_stride), gradients of the operands of two wavefronts in turn
    dh_read_at: int = 0  # (2, longest, D·n), gradients of h in the equations, in the same way
    dstates_at: int = 0  # (2, longest, D·S·n), gradients of the states
    parameter_sums_at: int = 0  # sums of the cell's parameters over a block
    part_at: int = 0  # sums over a part


class Job(NamedTuple):
    """Some wavefronts of one band, for some samples, in one direction: one call of a kernel."""

    direction: int
    corner: int  # the place that offsets are counted from
    begin: int  # of the wavefronts in the band
    end: int
    starts: int  # (T + 1,) the row at which each wavefront starts
    offsets: int  # (V,) int32, the place of each row in (N, P), from the corner
    predecessors: int  # (D, V) int32, the row one step back along each axis; −1 outside the band
    successors: int  # (D, V) int32, the row one step forward along each axis; −1 outside the band
    rows: int  # V
    continues: int  # whether the grid goes on before the band along axis 0
    lane: int  # whose memory it uses
    sums: int  # where it adds its sums
    dx: int  # where it adds its part of dx


load_arrays = record_loader(Arrays)
load_layout = record_loader(Layout)
load_job = record_loader(Job)


def words(record: tuple[int, ...]) -> array[int]:
    """A record in memory."""
    return array("q", record)


def address(of_words: array[int]) -> int:
    """The address of a record. The caller keeps it alive."""
    return of_words.buffer_info()[0]
