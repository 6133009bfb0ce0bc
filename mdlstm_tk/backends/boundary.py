"""The faces of a grid: where states enter a sweep, and where they leave it.

Face d of a grid is the grid without axis d. Each place on it stands for a *line* of positions along axis d.
The states of a line enter the sweep at the line's first valid position in the sweep's direction, and leave
it at the last one: with `sizes` these are the ends of each sample's own extents. All states on all faces
are one tensor (N, F, dirs, 1 + S, n) in `state_dtype`: face after face, each in row-major order, and for
each line h, then the S other states of the cell.

All code that orders lines or finds their ends is in this file.

Notation
    E_d, S_d, P   extent and stride of axis d, in positions; positions
    F             lines of all axes, F = Σ_d P / E_d
    row           in (dirs, rows), the states in visiting order: see `mdlstm_tk.backends.tables`
    face row      in (dirs, F·N): line · N + sample
"""

from __future__ import annotations

from collections.abc import Sequence
from math import prod

import torch
from torch import Tensor

from mdlstm_tk._util.masking import valid_mask
from mdlstm_tk.backends.inputs import SweepInputs, boundary_shape
from mdlstm_tk.backends.tables import SweepRows


def face_extents(grid: Sequence[int], d: int) -> tuple[int, ...]:
    """The extents of face d."""
    return (*grid[:d], *grid[d + 1 :])


def split_faces(boundary: Tensor, grid: Sequence[int]) -> list[Tensor]:
    """(N, F, …) → for each axis (N, *extents of the other axes, …), views."""
    parts = boundary.split(line_counts(grid), dim=1)
    return [
        part.view(part.shape[0], *face_extents(grid, d), *part.shape[2:]) for d, part in enumerate(parts)
    ]


def line_counts(grid: Sequence[int]) -> list[int]:
    """P / E_d for each axis, the number of its lines."""
    return [prod(face_extents(grid, d)) for d in range(len(grid))]


def valid_lines(grid: Sequence[int], sizes: Tensor) -> Tensor:
    """(N, F) bool, true for the lines that have valid positions in a sample. `sizes` is (N, D)."""
    faces = []
    for d in range(len(grid)):
        others = torch.cat([sizes[:, :d], sizes[:, d + 1 :]], dim=1)
        faces.append(valid_mask(face_extents(grid, d), others).reshape(sizes.shape[0], -1))
    return torch.cat(faces, dim=1)


def line_ends(inputs: SweepInputs, leaving: bool) -> Tensor:
    """(N or 1, F, dirs) int64, the flat positions where the states of each line enter, or leave."""
    grid, device = inputs.grid, inputs.x.device
    sizes = None if inputs.sizes is None else inputs.sizes.to(device)  # of a captured graph: any numbers
    signs = torch.tensor(inputs.directions, device=device)  # (dirs, D)
    ends = []
    for d, (extent, count) in enumerate(zip(grid, line_counts(grid), strict=True)):
        stride = prod(grid[d + 1 :])
        line = torch.arange(count, device=device)
        near = (line // stride * (extent * stride) + line % stride)[None, :, None]
        steps = torch.tensor([extent - 1], device=device)
        if sizes is not None:
            steps = (sizes[:, d] - 1).clamp(0, extent - 1)
        ends.append(torch.where((signs[:, d] > 0) == leaving, near + stride * steps[:, None, None], near))
    return torch.cat(ends, dim=1)


def end_rows(inputs: SweepInputs, rows: SweepRows, leaving: bool) -> Tensor:
    """(dirs, F, N), the rows of `line_ends`: −1 for the lines of a ragged batch that lie outside their
    sample's valid extents."""
    places = line_ends(inputs, leaving).permute(2, 1, 0)  # (dirs, F, N or 1)
    direction = torch.arange(len(places), device=places.device)[:, None, None]
    sample = torch.arange(inputs.x.shape[0], device=places.device)
    if rows.ragged:
        return rows.tables.inverse_order[direction, places + sample * prod(inputs.grid)].long()
    return rows.tables.inverse_order[direction, places].long() * rows.batch + sample


def take_rows(values: Tensor, rows: Tensor) -> Tensor:
    """(dirs, rows, k) → (dirs, K, k) at the K rows of each direction; zeros where a row is −1."""
    if values.shape[1] == 0:
        return values.new_zeros(*rows.shape, values.shape[2])
    index = rows.clamp(min=0)[..., None].expand(-1, -1, values.shape[2])
    return values.gather(1, index).masked_fill(rows[..., None] < 0, 0)


def end_rows_of_axes(inputs: SweepInputs, rows: SweepRows, leaving: bool) -> list[Tensor]:
    """D × (dirs, F_d·N), the rows of `end_rows` of the lines along each axis, in the order of face rows."""
    ends = end_rows(inputs, rows, leaving).split(line_counts(inputs.grid), dim=1)
    return [row.flatten(1) for row in ends]


def face_rows(inputs: SweepInputs, rows: SweepRows, leaving: bool) -> Tensor:
    """(D, dirs, rows), for each axis the face row whose line has its end at a row, or −1."""
    ends = end_rows_of_axes(inputs, rows, leaving)
    counts = [row.shape[1] for row in ends]
    dtype = torch.int32 if sum(counts) < 2**31 else torch.int64
    numbers = torch.arange(sum(counts), device=inputs.x.device, dtype=dtype)
    no_line = numbers.new_full((len(inputs.directions), rows.count + 1), -1)  # the last: for row −1
    parts = [
        no_line.scatter(1, row.remainder(rows.count + 1), number.expand_as(row))[:, :-1]
        for row, number in zip(ends, numbers.split(counts), strict=True)
    ]
    return torch.stack(parts)


def by_direction(boundary: Tensor) -> Tensor:
    """(N, F, dirs, 1 + S, n) → (dirs, F·N, (1 + S)·n), contiguous, indexed by face row."""
    return boundary.permute(2, 1, 0, 3, 4).flatten(3).flatten(1, 2).contiguous()


def at_rows(boundary: Tensor, inputs: SweepInputs, rows: SweepRows, leaving: bool) -> Tensor:
    """(N, F, dirs, 1 + S, n) → (D, dirs, rows, (1 + S)·n), for each axis the states of the line that ends
    at a row, zeros where none does."""
    values = by_direction(boundary)
    values = torch.cat([values, values.new_zeros(values.shape[0], 1, values.shape[2])], dim=1)
    direction = torch.arange(len(values), device=values.device)[:, None]
    return values[direction, face_rows(inputs, rows, leaving)]


def at_entries(of_axes: Tensor, inputs: SweepInputs, rows: SweepRows) -> Tensor:
    """(D, dirs, rows, (1 + S)·n) → (N, F, dirs, 1 + S, n), for each line along an axis the values of that
    axis at the row where the line enters the sweep."""
    ends = end_rows_of_axes(inputs, rows, leaving=False)
    parts = [take_rows(values, row) for values, row in zip(of_axes, ends, strict=True)]
    return from_directions(torch.cat(parts, dim=1), inputs)


def from_directions(rows: Tensor, inputs: SweepInputs) -> Tensor:
    """(dirs, F·N, (1 + S)·n) → (N, F, dirs, 1 + S, n)."""
    batch, lines, dirs, states, units = boundary_shape(inputs)
    return rows.reshape(dirs, lines, batch, states, units).permute(2, 1, 0, 3, 4).contiguous()


def final_states(inputs: SweepInputs, rows: SweepRows, output: Tensor, states: Tensor) -> Tensor:
    """(N, F, dirs, 1 + S, n), the states that leave a sweep.

    Args:
        inputs, rows: of the sweep.
        output: (N, *grid, dirs, n), h of all positions.
        states: (dirs, rows, S·n), in visiting order.
    """
    batch, units = output.shape[0], output.shape[-1]
    ends = line_ends(inputs, leaving=True)
    h = output.flatten(1, -3).gather(1, ends[..., None].expand(batch, -1, -1, units))
    others = take_rows(states, end_rows(inputs, rows, leaving=True).flatten(1))  # (dirs, F·N, S·n)
    h = h.permute(2, 1, 0, 3).flatten(1, 2).to(states.dtype)
    return from_directions(torch.cat([h, others], dim=2), inputs)
