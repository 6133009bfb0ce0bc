"""`BoundaryState`, with which a grid is swept in parts: checks, and the way to and from a sweep."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import fields, make_dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils import _pytree

from mdlstm_tk._util.arguments import check_strided
from mdlstm_tk._util.text import counted, one_line
from mdlstm_tk.backends.boundary import face_extents, line_counts, split_faces, valid_lines
from mdlstm_tk.backends.inputs import state_dtype
from mdlstm_tk.errors import InputError

Faces = Sequence[Tensor | None] | None  # of one state: a tensor for each axis


class BoundaryState:
    """The states on the hyperplanes just outside a grid, which a layer starts from, or on the last ones
    inside it, which the layer ends with.

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

    A cell with other states has more attributes of the same kind, such as `n` of "slstm". Across an axis
    either all states of the cell are given, or all are None and count as zeros.
    """

    h: Faces = None
    c: Faces = None

    def __init__(self, /, h: Faces = None, c: Faces = None, **others: Faces) -> None:
        given = {"h": h, "c": c, **others}
        vars(self).update({name: faces for name, faces in given.items() if faces is not None})

    def __getattr__(self, name: str) -> Faces:
        raise AttributeError(f"this BoundaryState has no state '{name}', only {', '.join(vars(self))}")

    @property
    def __dataclass_fields__(self) -> dict[str, Any]:
        """The states as fields: `torch.nn.parallel` and FSDP look for tensors in those of an output."""
        return {field.name: field for field in fields(make_dataclass("_States", list(vars(self))))}

    def __iter__(self) -> Iterator[Faces]:
        return iter(vars(self).values())

    def __repr__(self) -> str:
        def shapes(faces: Faces) -> object:
            return None if faces is None else [None if t is None else tuple(t.shape) for t in faces]

        return f"BoundaryState({', '.join(f'{name}={shapes(f)}' for name, f in vars(self).items())})"


# These let `torch.load(weights_only=True)`, torch.export and torch.func see into a BoundaryState.
torch.serialization.add_safe_globals([BoundaryState])
_pytree.register_pytree_node(
    BoundaryState,
    lambda state: (list(vars(state).values()), list(vars(state))),
    lambda faces, names: BoundaryState(**dict(zip(names, faces, strict=True))),
    serialized_type_name="mdlstm_tk.BoundaryState",
    flatten_with_keys_fn=lambda state: (
        [(_pytree.GetAttrKey(name), faces) for name, faces in vars(state).items()],
        list(vars(state)),
    ),
)

State = tuple[BoundaryState, ...]  # of a layer: one for each of its stacked layers


class FaceShape(NamedTuple):
    """The properties of a sweep that the states of a layer must fit.

    Attributes:
        x: (N, *grid, C), the input of the first layer, after windows.
        sizes: (N, D) its valid extents, or None.
        dirs, units: the number of directions, and n.
        states: the names of the states, h first.
        dtype: of y.
        has_batch_axis: whether the user's tensors have one.
    """

    x: Tensor
    sizes: Tensor | None
    dirs: int
    units: int
    states: tuple[str, ...]
    dtype: torch.dtype
    has_batch_axis: bool

    @property
    def grid(self) -> tuple[int, ...]:
        return tuple(self.x.shape[1:-1])

    @property
    def state_dtype(self) -> torch.dtype:
        """The dtype of states other than h; autocast does not change it."""
        return state_dtype(self.x)


def initial_states(initial_state: Any, num_layers: int, shape: FaceShape) -> list[Tensor]:
    """The initial states of each layer as a sweep takes them (N, F, dirs, 1 + S, n), zeros where there are
    none.

    Raises:
        InputError: `initial_state` does not fit; the message names the face and the shape it should have.
    """
    if initial_state is None:
        initial_state = [BoundaryState()] * num_layers
    fits = isinstance(initial_state, tuple | list) and len(initial_state) == num_layers
    if not fits or not all(isinstance(state, BoundaryState) for state in initial_state):
        hint = "; write (state,)" if isinstance(initial_state, BoundaryState) and num_layers == 1 else ""
        raise InputError(
            f"initial_state must be a tuple with one BoundaryState for each of "
            f"{counted(num_layers, 'layer')}, got {_describe(initial_state)}{hint}"
        )
    return [_join_states(f"initial_state[{k}]", state, shape) for k, state in enumerate(initial_state)]


def _join_states(name: str, state: BoundaryState, shape: FaceShape) -> Tensor:
    """(N, F, dirs, 1 + S, n) from the state of one layer."""
    unknown = [key for key, faces in vars(state).items() if faces is not None and key not in shape.states]
    if unknown:
        raise InputError(
            f"{name} must have states among {', '.join(shape.states)} of the layer's cell, "
            f"got {', '.join(unknown)}"
        )
    faces = {key: _of_axes(f"{name}.{key}", vars(state).get(key), shape) for key in shape.states}
    for d in range(len(shape.grid)):
        missing = [key for key in shape.states if faces[key][d] is None]
        if missing and len(missing) < len(shape.states):
            raise InputError(
                f"{name} must have all states of the layer's cell across axis {d} or none, "
                f"{', '.join(shape.states)}, got None for {', '.join(missing)}"
            )
    return torch.stack([_join_axes(f"{name}.{key}", faces[key], shape) for key in shape.states], dim=3)


def to_boundary_state(final: Tensor, shape: FaceShape) -> BoundaryState:
    """The final states of a sweep (N, F, dirs, 1 + S, n) as the user gets them."""
    faces: dict[str, Faces] = {}
    for s, name in enumerate(shape.states):
        tensors = split_faces(final.select(3, s), shape.grid)
        dtype = shape.dtype if name == "h" else shape.state_dtype
        faces[name] = tuple((t if shape.has_batch_axis else t.squeeze(0)).to(dtype) for t in tensors)
    return BoundaryState(**faces)


def _of_axes(name: str, faces: Any, shape: FaceShape) -> Sequence[Any]:
    """What a state has for each axis, a face or None."""
    if faces is None:
        return [None] * len(shape.grid)
    if not isinstance(faces, tuple | list) or len(faces) != len(shape.grid):
        raise InputError(
            f"{name} must be a tuple with a tensor or None for each of "
            f"{counted(len(shape.grid), 'axis', 'axes')}, got {_describe(faces)}"
        )
    return faces


def _join_axes(name: str, faces: Sequence[Any], shape: FaceShape) -> Tensor:
    """(N, F, dirs, n), from a tensor or None for each axis."""
    grid, (batch, *_) = shape.grid, shape.x.shape
    parts = []
    for d, (face, count) in enumerate(zip(faces, line_counts(grid), strict=True)):
        if face is None:
            zeros = shape.x.new_zeros(batch, count, shape.dirs, shape.units, dtype=shape.state_dtype)
            parts.append(zeros)
            continue
        _check(f"{name}[{d}]", face, d, shape)
        parts.append(face.to(shape.state_dtype).reshape(batch, count, shape.dirs, shape.units))
    joined = torch.cat(parts, dim=1)
    if shape.sizes is None:
        return joined
    # Lines outside a sample's extents start from zeros, whatever the user gives there.
    return joined.masked_fill(~valid_lines(grid, shape.sizes.to(joined.device))[..., None, None], 0)


def _check(name: str, face: Any, d: int, shape: FaceShape) -> None:
    """Check the face of axis d."""
    if not isinstance(face, Tensor):
        raise InputError(f"{name} must be a tensor or None, got {_describe(face)}")
    check_strided(name, face)
    batch = list(shape.x.shape[:1]) if shape.has_batch_axis else []
    expected = (*batch, *face_extents(shape.grid, d), shape.dirs, shape.units)
    if tuple(face.shape) != expected:
        axes = [*(["N"] if batch else []), *(f"E{k + 1}" for k in range(len(shape.grid)) if k != d)]
        raise InputError(
            f"{name} must be the face across axis {d} of the grid {shape.grid}, "
            f"({', '.join([*axes, 'dirs', 'n'])}) = {expected}, got shape {tuple(face.shape)}"
        )
    accepted = {shape.x.dtype, shape.dtype, shape.state_dtype}
    if face.dtype not in accepted:
        raise InputError(
            f"{name} must have the dtype {' or '.join(sorted(map(str, accepted)))}, got {face.dtype}; "
            "convert it with .to(dtype)"
        )
    if face.device != shape.x.device:
        raise InputError(f"{name} must be on x's device {shape.x.device}, got {face.device}")


def _describe(value: object) -> str:
    """A value in a few words."""
    if isinstance(value, BoundaryState):
        return "a BoundaryState"
    if isinstance(value, Tensor):
        return f"a tensor of shape {tuple(value.shape)}"
    if isinstance(value, tuple | list):
        kinds = ", ".join(type(entry).__name__ for entry in value)
        return f"a {type(value).__name__} of {len(value)} ({kinds})"
    return one_line(value)
