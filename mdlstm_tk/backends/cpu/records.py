"""The arguments of the kernels: records of int64 that kernels read by name.

A kernel takes the addresses of three records: the arrays of a call, the layout that all its jobs share, and
the job itself. Arrays are given by their addresses, 0 for None.

Notation
    N, P, D, F        batch, positions of the grid, axes, lines of all faces (`mdlstm_tk.states`)
    n, C, G, S, R     hidden units, input features, gates, states beside h, rows of the cell's parameters
    K                 length of an operand, hidden_dim + C + 1
    NR                columns of a panel, see `matmul`
    V, T              positions (visits) and wavefronts of a tile
"""

from __future__ import annotations

from array import array
from typing import NamedTuple

from mdlstm_tk.backends.cpu.intrinsics import record_loader


class Arrays(NamedTuple):
    """The arrays of a call of `kernels.forward` or `kernels.backward`; 0 where it has none."""

    cell: int  # C function, see `cell_code`
    matmul: int  # C function
    x: int  # (N, P, C)
    weight_hh: int  # (dirs, D, G·n, n)
    weight_ih: int  # (dirs, G·n, C)
    bias: int  # (dirs, G·n)
    parameters: int  # (dirs, R, n)
    weights: int  # (dirs, panels, K, NR), see `matmul.pack`; backward: if it computes pre-activations again
    front: int  # (N, F, dirs, 1 + S, n), see `kernels`: the states, or gradients, between tiles
    output: int  # (N, P, dirs, n)
    gates: int  # (dirs, N·P, G·n), if they are kept
    states: int  # (dirs, N·P, S·n), if they are kept
    scratch: int  # memory of all chains
    grad: int  # (N, P, dirs, n), gradient of the output
    initial: int  # (N, F, dirs, 1 + S, n)
    weights_t: int  # (dirs, panels, G·n, NR), see `matmul.pack_transposed`
    dx: int  # (buffers, N, P, C), zeros to add to
    sums: int  # (sum_count, dirs, sums_size), zeros to add gradients of weights and parameters to
    dweight_hh: int  # the gradients of weights and parameters, each in the shape of what it belongs to
    dweight_ih: int
    dbias: int
    dparameters: int


class Layout(NamedTuple):
    """Sizes that all jobs of a sweep share. Fields that end in `_at` tell where something starts in the
    memory of a chain, in numbers; those of the other pass are 0."""

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
    panel: int  # NR
    longest: int  # rows of the longest wavefront of a tile
    columns: int  # columns of the operands' gradients: hidden_dim, and C more if that of x is wanted
    d_stride: int  # columns in whole vectors
    sums_size: int  # numbers in the sums of a direction: of weights (K, padded), then of parameters (R, n)
    sum_count: int  # sums of each direction
    part_blocks: int  # blocks whose sums are added up before they are added to the total; 0: all
    scratch: int  # numbers in the memory of a chain
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
    """Some wavefronts of one tile, for some samples, in one direction: one call of a kernel.

    Jobs that run one after another are linked.
    """

    direction: int
    first_sample: int
    samples: int
    corner: int  # flat position of the tile's first visit
    begin: int  # of the wavefronts in the tile
    end: int
    starts: int  # (T + 1,) the visit at which each wavefront starts
    offsets: int  # (V,) int32, the flat position of each visit from the corner
    predecessors: int  # (D, V) int32, the visit one step back along each axis; −1 outside the tile
    successors: int  # (D, V) int32, the visit one step forward along each axis; −1 outside the tile
    visits: int  # V
    continues: int  # whether the grid goes on before the tile along axis 0
    chain: int  # whose memory it uses
    sums_index: int  # where it adds its sums
    dx_buffer: int  # where it adds its part of dx
    following: int = 0  # the address of the job that the same thread runs next, if it waits for no other


load_arrays = record_loader(Arrays)
load_layout = record_loader(Layout)
load_job = record_loader(Job)


def words(record: tuple[int, ...]) -> array[int]:
    """A record in memory."""
    return array("q", record)


def address(of_words: array[int]) -> int:
    """The address of a record. The caller keeps it alive."""
    return of_words.buffer_info()[0]
