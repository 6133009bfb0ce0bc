"""`BoundaryState`, with which a grid is swept in parts, and the faces where states enter and leave.

Face d of a grid is the grid without axis d. Each place on it stands for a *line* of positions along axis d.
The states of a line enter the sweep at the line's first valid position in the sweep's direction, and leave
it at the last one: with `sizes` these are the ends of each sample's own extents. All states on all faces
are one tensor (N, F, dirs, 1 + S, n) in `state_dtype`: face after face, each in row-major order, and for
each line h, then the S other states of the cell.

Notation
    E_d, S_d, P   extent and stride of axis d, in positions; positions
    F             lines of all axes, F = Σ_d P / E_d
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import prod
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree

from mdlstm_tk._util.masking import valid_mask
from mdlstm_tk.errors import InputError
from mdlstm_tk.inputs import SweepInputs, boundary_shape, state_dtype
from mdlstm_tk.wavefront import SweepRows

Faces = Sequence[Tensor | None] | None  # of one state: a tensor for each axis


class BoundaryState(dict[str, Any]):
    """The states on the hyperplanes just outside a grid, which a layer starts from, or on the last ones
    inside it, which the layer ends with: a dict whose values are attributes, too.

        >>> layer = MDLSTM(3, 16)
        >>> y, state = layer(torch.zeros(2, 8, 12, 3), return_state=True)
        >>> [tuple(h.shape) for h in state[0].h]
        [(2, 12, 1, 16), (2, 8, 1, 16)]

    For axis d a tensor is (N, *extents of the other axes, dirs, n), without N if x has no batch axis. With
    windows the extents are those of y. A direction with sign 1 along d enters at index 0 of that axis and
    leaves at its far end; one with sign −1 enters at the far end and leaves at index 0. With `sizes`, far
    ends are those of each sample.

    Attributes:
        h: for each axis the hidden states, or None; or None for all axes. Those that a layer returns have
            the dtype of y.
        c: the same for the cell states. Those that a layer returns are float32 where y is float16 or
            bfloat16.

    A cell with other states has more of the same kind, such as `n` of "slstm". Across an axis either all
    states of the cell are given, or all are None and count as zeros.
    """

    h: Sequence[Tensor]
    c: Sequence[Tensor]

    def __init__(self, /, h: Faces = None, c: Faces = None, **others: Faces) -> None:
        given = {"h": h, "c": c, **others}
        super().__init__({name: faces for name, faces in given.items() if faces is not None})

    def __getattr__(self, name: str) -> Any:
        if name in self:
            return self[name]
        raise AttributeError(f"this BoundaryState has no state '{name}', only {', '.join(self)}")

    def __reduce__(self) -> tuple[Any, ...]:
        return _boundary_state, (dict(self),)


def _boundary_state(faces: dict[str, Faces]) -> BoundaryState:
    return BoundaryState(**faces)


State = tuple[BoundaryState, ...]  # of a layer: one for each of its stacked layers

# These let `torch.load(weights_only=True)`, torch.export and torch.func see into a BoundaryState.
torch.serialization.add_safe_globals([_boundary_state])
_pytree.register_pytree_node(
    BoundaryState,
    lambda state: (list(state.values()), list(state)),
    lambda faces, names: BoundaryState(**dict(zip(names, faces, strict=True))),
    serialized_type_name="mdlstm_tk.BoundaryState",
    flatten_with_keys_fn=lambda state: (
        [(_pytree.MappingKey(name), faces) for name, faces in state.items()],
        list(state),
    ),
)


def join_faces(
    state: Mapping[str, Faces],
    names: Sequence[str],
    x: Tensor,
    shape: tuple[int, int],
    sizes: Tensor | None,
    has_batch_axis: bool,
) -> Tensor:
    """The initial state of a layer as a sweep takes it, (N, F, dirs, 1 + S, n), zeros where there is none.

    Args:
        state: as the user gives it.
        names: of the states, h first.
        x: (N, *grid, C), after windows.
        shape: (dirs, n).
        sizes: (N, D), those of x.
        has_batch_axis: whether the user's tensors have one.

    Raises:
        InputError: a face has another shape, or there are other states than those of the cell, or not all.
    """
    (batch, *grid, _), dtype = x.shape, state_dtype(x)
    given = {name: faces for name, faces in state.items() if faces is not None}
    joined, none = [], (None,) * len(grid)
    for d, count in enumerate(line_counts(grid)):
        expected = (batch, *face_extents(grid, d), *shape)[not has_batch_axis :]
        of_axis = [given.get(name, none)[d] for name in names]
        there = [face for face in of_axis if face is not None]
        fits = len(there) in (0, len(names)) and all(face.shape == expected for face in there)
        if not fits or not given.keys() <= set(names):
            raise InputError(
                f"across axis {d} initial_state must have {', '.join(names)}, of shape {expected} each, or "
                f"none of them, got {', '.join(given)} with {[tuple(face.shape) for face in there]}"
            )
        lines = (batch, count, shape[0], 1, shape[1])
        zeros = x.new_zeros(lines, dtype=dtype)
        faces = [zeros if face is None else face.to(dtype).reshape(lines) for face in of_axis]
        joined.append(torch.cat(faces, dim=3))
    boundary = torch.cat(joined, dim=1)
    if sizes is None:
        return boundary
    # Lines outside a sample's extents start from zeros, whatever the user gives there.
    return boundary.masked_fill(~valid_lines(grid, sizes.to(x.device))[..., None, None, None], 0)


def split_states(
    final: Tensor, names: Sequence[str], grid: Sequence[int], dtype: torch.dtype, has_batch_axis: bool
) -> BoundaryState:
    """The final states of a sweep (N, F, dirs, 1 + S, n) as the user gets them: h in `dtype`."""
    faces = {}
    for s, name in enumerate(names):
        tensors = split_faces(final.select(3, s), grid)
        tensors = tensors if has_batch_axis else [face.squeeze(0) for face in tensors]
        faces[name] = tuple(face.to(dtype) if name == "h" else face for face in tensors)
    return BoundaryState(**faces)


def face_extents(grid: Sequence[int], d: int) -> tuple[int, ...]:
    """The extents of face d."""
    return (*grid[:d], *grid[d + 1 :])


def line_counts(grid: Sequence[int]) -> list[int]:
    """P / E_d for each axis, the number of its lines."""
    return [prod(face_extents(grid, d)) for d in range(len(grid))]


def split_faces(boundary: Tensor, grid: Sequence[int]) -> list[Tensor]:
    """(N, F, …) → for each axis (N, *extents of the other axes, …), views."""
    parts = boundary.split(line_counts(grid), dim=1)
    return [
        part.view(part.shape[0], *face_extents(grid, d), *part.shape[2:]) for d, part in enumerate(parts)
    ]


def valid_lines(grid: Sequence[int], sizes: Tensor) -> Tensor:
    """(N, F) bool, true for the lines that have valid positions in a sample. `sizes` is (N, D)."""
    faces = []
    for d in range(len(grid)):
        others = torch.cat([sizes[:, :d], sizes[:, d + 1 :]], dim=1)
        faces.append(valid_mask(face_extents(grid, d), others).unsqueeze(-1).flatten(1))
    return torch.cat(faces, dim=1)


def boundary_rows(boundary: Tensor, rows: SweepRows) -> Tensor:
    """(N, F, dirs, 1 + S, n) → (dirs, L, (1 + S)·n), the states of the lines of a sweep."""
    return boundary.flatten(3).flatten(0, 1)[rows.lines, rows.direction].contiguous()


def from_boundary_rows(values: Tensor, rows: SweepRows, inputs: SweepInputs) -> Tensor:
    """The reverse: zeros for the lines that lie outside a sample's valid extents."""
    batch, lines, *shape = boundary_shape(inputs)
    zeros = values.new_zeros(batch * lines, *shape)
    placed = zeros.index_put((rows.lines, rows.direction), values.unflatten(-1, shape[1:]))
    return placed.unflatten(0, (batch, lines))  # type: ignore[no-any-return]
