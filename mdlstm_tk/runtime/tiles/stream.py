"""Row streams: images without end, row by row, for networks whose directions all go downwards."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from math import prod
from typing import IO, TYPE_CHECKING, Any

import numpy as np

from mdlstm_tk.errors import InputError, MDLSTMError
from mdlstm_tk.runtime.io.arrays import to_float32
from mdlstm_tk.runtime.io.npy import FLOAT_BYTES, Array, read_header
from mdlstm_tk.runtime.tiles.plan import Region, shape_of
from mdlstm_tk.runtime.tiles.work import Face, ordered_sweeps

if TYPE_CHECKING:
    from mdlstm_tk.runtime.tiles.session import TiledSession

BLOCK_BYTES = 2**25  # of the largest output of a stage for the rows that run together, which bounds memory
BLOCK_ROWS = 64  # of the last stage; more rows make no run faster
PIECE_POSITIONS = 2**16  # of a stage's output in one run: rows are swept in pieces, one after the other
READ_BYTES = 2**20


class RowStream:
    """Takes the rows of an image from top to bottom and returns those of y.

        >>> stream = session.stream(width=4096)
        >>> for rows in camera:                 # (r, 4096, C) of any height r
        ...     show(stream.feed(rows))         # (r', 4096, outputs): the rows that are complete
        >>> show(stream.close())                # the rest

    It is exact where every direction of every layer goes downwards (sign +1 on axis 0): a row of y depends
    on the rows of x down to the end of its window and on none below, so that it never changes. It is y of
    the whole image, but for rounding. Networks with an upward direction need the last row before they can
    return the first; they, and those that average over the grid, are refused. Memory grows with the width,
    not with the number of rows.

    Args:
        session: the model.
        width: extent of each axis but the first; a number if there is one such axis.

    Raises:
        InputError: the network cannot stream, or the width is invalid.
    """

    def __init__(self, session: TiledSession, width: int | Sequence[int]) -> None:
        archive, metadata = session.archive, session.metadata
        upward = [
            sweep.direction for stage in archive.stages for sweep in stage.sweeps if sweep.direction[0] < 0
        ]
        if upward:
            raise InputError(
                f"rows cannot stream through a network with the direction {upward[0]}, which goes upwards "
                "and starts at the last row; use tiles, or train with directions that go downwards"
            )
        if archive.pool:
            raise InputError("rows cannot stream through a network that averages over the grid; use tiles")
        extents = tuple(width) if isinstance(width, Sequence) else (width,)
        if len(extents) != metadata.ndim - 1 or any(extent < 1 for extent in extents):
            raise InputError(f"width must hold {metadata.ndim - 1} positive extents, got {width}")
        self._session, self._width = session, extents
        self._stages = []
        numbered = list(enumerate(ordered_sweeps(archive)))
        for s, stage in enumerate(archive.stages):
            own = [(number, k) for number, (of, k) in numbered if of == s]
            outputs = tuple(-(-e // w) for e, w in zip(extents, stage.window[1:], strict=True))
            faces: dict[int, Face] = {}
            for number, _ in own:
                faces[number] = np.zeros((len(stage.states), *outputs, stage.units), np.float32)
            self._stages.append(_StageRows(session, s, own, (extents, outputs), faces))
            extents = outputs
        unit = archive.total_window[0]
        features = max(stage.outputs for stage in archive.stages)
        rows = BLOCK_BYTES // (unit * prod(self._width) * features * FLOAT_BYTES)
        self._block = min(max(rows, 1), BLOCK_ROWS) * unit
        self._rows_in = self._rows_out = 0
        self._is_closed = False

    def feed(self, rows: Array) -> Array:
        """Take the next rows.

        Args:
            rows: (r, *width, C), or (r, *width) if C is 1; r may be 0.

        Returns:
            (r', *⌈width/window⌉, outputs) float32: the next rows of y, as far as they are complete.

        Raises:
            InputError: the rows have another shape, or are not finite.
            MDLSTMError: ONNX Runtime fails, or the stream is closed.
        """
        if self._is_closed:
            raise MDLSTMError("this stream is closed; begin another one with session.stream(...)")
        rows, channels = np.asarray(rows), self._session.metadata.channels
        if rows.ndim == len(self._width) + 1 and channels == 1:
            rows = rows[..., None]
        if rows.shape[1:] != (*self._width, channels):
            expected = ", ".join(map(str, (*self._width, channels)))
            raise InputError(f"rows have shape {rows.shape}, expected (r, {expected})")
        results = [self._empty()]
        for first in range(0, len(rows), self._block):
            block = to_float32(rows[first : first + self._block], "rows")
            self._rows_in += len(block)
            results.append(self._through(block, is_last=False))
        return np.concatenate(results)

    def close(self) -> Array:
        """End the image and return the rows of y that are left: (r', *⌈width/window⌉, outputs)."""
        if self._is_closed:
            return self._empty()
        first = self._session.archive.stages[0]
        rest = self._through(np.empty((0, *self._width, first.channels), np.float32), is_last=True)
        self._is_closed = True
        return rest

    def _through(self, rows: Array, is_last: bool) -> Array:
        """The rows of y that these rows of x complete."""
        for stage in self._stages:
            rows = stage.take(rows, is_last)
        archive, session = self._session.archive, self._session
        if not len(rows):
            return self._empty()
        y: Array = rows[None] if session.head is None else session.head.run({"x": rows[None]})["y"]
        window = archive.metadata.window or archive.total_window
        known = -(-self._rows_in // window[0]) - self._rows_out  # the last window may reach below the image
        y = y[0][(slice(min(len(y[0]), known)), *map(slice, self._empty().shape[1:-1]))]
        self._rows_out += len(y)
        return y

    def _empty(self) -> Array:
        return np.empty((0, *self._session.output_shape((1, *self._width))[1:]), np.float32)


class _StageRows:
    """The rows of one stage: those that wait for the rest of their window, and the faces of its sweeps."""

    def __init__(
        self,
        session: TiledSession,
        index: int,
        sweeps: list[tuple[int, int]],
        extents: tuple[tuple[int, ...], tuple[int, ...]],
        faces: dict[int, Face],
    ) -> None:
        self._graphs, self._stage = session.graphs, session.archive.stages[index]
        self._sweeps, self._outputs, self._faces = sweeps, extents[1], faces
        self._waiting = np.empty((0, *extents[0], self._stage.channels), np.float32)

    def take(self, rows: Array, is_last: bool) -> Array:
        """Take rows of the stage's input, and return the rows of its output that are complete."""
        rows = np.concatenate([self._waiting, rows]) if len(self._waiting) else rows
        tall = self._stage.window[0]
        ready = len(rows) if is_last else len(rows) // tall * tall
        rows, self._waiting = rows[:ready], rows[ready:]
        if not ready:
            return np.empty((0, *self._outputs, self._stage.outputs), np.float32)
        parts = {k: self._swept(number, k, rows) for number, k in self._sweeps}
        if self._stage.added:
            total = next(iter(parts.values()))
            for part in list(parts.values())[1:]:
                total = total + part
            return total
        return np.concatenate([parts[k] for k in sorted(parts)], axis=-1)

    def _swept(self, number: int, k: int, rows: Array) -> Array:
        """The part of one sweep for rows: (rows, *outputs, F). It keeps the faces for the rows below.

        The rows are cut into pieces along the second axis, so that many rows take no more memory.
        """
        stage, first = self._stage, self._faces[number]
        down = -(-len(rows) // stage.window[0])
        part = np.empty((down, *self._outputs, stage.features), np.float32)
        last = np.empty_like(first)
        side: Face | None = None  # of the piece before, along axis 1
        for inner, outer in self._pieces(down, stage.sweeps[k].direction):
            extents = (down, *shape_of(inner))
            feeds = {"x": rows[(None, slice(None), *outer)]}
            for axis in range(len(extents)):
                face = first[(slice(None), *inner)] if axis == 0 else side if axis == 1 else None
                if face is None:
                    others = *extents[:axis], *extents[axis + 1 :]
                    face = np.zeros((len(stage.states), *others, stage.units), np.float32)
                feeds |= {f"{state}{axis}": f[None] for state, f in zip(stage.states, face, strict=True)}
            outputs = self._graphs[number].run(feeds)
            if outputs["part"].shape != (1, *extents, stage.features):
                raise MDLSTMError("the graphs of the archive do not fit together; export the model again")
            part[(slice(None), *inner)] = outputs["part"][0]
            leaving = [
                np.concatenate([outputs[f"{state}{axis}_n"] for state in stage.states])
                for axis in range(min(len(extents), 2))
            ]
            last[(slice(None), *inner)] = leaving[0]
            side = leaving[-1]
        self._faces[number] = last
        return part

    def _pieces(self, down: int, direction: tuple[int, ...]) -> Iterator[tuple[Region, Region]]:
        """The pieces of rows in the order of a direction: of the output, and of the input."""
        if not self._outputs:
            yield (), ()
            return
        across, *others = self._outputs
        size = max(1, PIECE_POSITIONS // (down * prod(others)))
        starts = range(0, across, size)
        for start in starts if direction[1] > 0 else reversed(starts):
            end, wide = min(start + size, across), self._stage.window[1]
            columns = slice(start * wide, end * wide)
            whole = tuple(slice(0, extent) for extent in others)
            yield (slice(start, end), *whole), (columns, *(slice(None) for _ in others))


def stream_rows(session: TiledSession, source: IO[bytes], target: IO[bytes]) -> tuple[int, int]:
    """Read rows as they come, and write those of y as soon as they are complete.

    Both are `.npy` streams: a header with dtype and shape, then the rows. A first extent of 0 stands for
    any number of rows, up to the end; it is written where it was read.

    Args:
        session: the model.
        source: an open binary file, such as `sys.stdin.buffer`.
        target: another one, which is flushed after each block.

    Returns:
        The number of rows that were read, and of those that were written.

    Raises:
        InputError: the source is no such stream, ends early, or does not fit the network.
        MDLSTMError: ONNX Runtime fails.
    """
    shape, fortran_order, dtype = read_header(source, "standard input")
    if fortran_order or dtype.kind not in "buif" or len(shape) < session.metadata.ndim:
        raise InputError(
            f"standard input holds {dtype} of shape {shape}, expected rows (H, W) or (H, W, C) of real "
            "numbers in C order"
        )
    stream = RowStream(session, shape[1 : session.metadata.ndim])
    squeezed = len(shape) == session.metadata.ndim and session.metadata.outputs == 1
    row_shape = session.output_shape((shape[0] or 1, *shape[1 : session.metadata.ndim]))
    declared = (row_shape[0] if shape[0] else 0, *row_shape[1 : -1 if squeezed else None])
    np.lib.format.write_array_header_1_0(
        target, {"descr": "<f4", "fortran_order": False, "shape": declared}
    )
    read = written = 0

    def write(y: Array) -> None:
        nonlocal written
        target.write(np.ascontiguousarray(y, "<f4").data if y.size else b"")
        target.flush()
        written += len(y)

    for rows in _rows(source, shape, dtype):
        read += len(rows)
        write(stream.feed(rows))
    write(stream.close())
    return read, written


def _rows(source: IO[bytes], shape: tuple[int, ...], dtype: np.dtype[Any]) -> Iterator[Array]:
    """The rows of a stream, as many at a time as there are."""
    row_bytes = prod(shape[1:]) * dtype.itemsize
    left = shape[0] * row_bytes if shape[0] else None
    data = b""
    read = getattr(source, "read1", source.read)
    while left is None or left > 0:
        wanted = max(READ_BYTES, row_bytes) if left is None else min(left, max(READ_BYTES, row_bytes))
        part = read(wanted)
        if not part:
            break
        left = None if left is None else left - len(part)
        data += part
        count = len(data) // row_bytes
        if count:
            yield np.frombuffer(data, dtype, count * prod(shape[1:])).reshape(count, *shape[1:])
            data = data[count * row_bytes :]
    if data or left:
        raise InputError("standard input ends in the middle of a row, or before the last one of its header")
