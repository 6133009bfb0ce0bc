"""Row streams: images without end, row by row, for networks whose directions all go downwards."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from math import prod
from typing import IO, TYPE_CHECKING, Any

import numpy as np

from mdlstm_tk.errors import InputError, MDLSTMError
from mdlstm_tk.runtime.io.npy import FLOAT_BYTES, Array, read_header, to_float32
from mdlstm_tk.runtime.runner import Runner
from mdlstm_tk.runtime.tiles.archive import Archive
from mdlstm_tk.runtime.tiles.sources import GridSource
from mdlstm_tk.runtime.tiles.work import Face, FaceKey, Work, make_plan, output_extents

if TYPE_CHECKING:
    from mdlstm_tk.runtime.tiles.session import TiledSession

BLOCK_BYTES = 2**25  # of the largest output of a stage for the rows that run together, which bounds memory
BLOCK_ROWS = 64  # of the last stage; more rows make no run faster
TILE_POSITIONS = 2**16  # about, of the first stage's output, in a tile of a block of rows
READ_BYTES = 2**20


class RowStream:
    """Takes the rows of an image from top to bottom and returns the rows of y.

        >>> stream = session.stream(width=4096)
        >>> for rows in camera:                 # (r, 4096, C) of any height r
        ...     show(stream.feed(rows))         # (r', 4096, outputs): the rows that are complete
        >>> show(stream.close())                # the rest

    It is exact where every direction of every layer goes downwards (sign +1 on axis 0): a row of y depends
    on the rows of x down to the end of its window and on none below, so that it never changes. It is y of
    the whole image, but for rounding. Networks with an upward direction need the last row before they can
    return the first; they, and those that average over the grid, are refused. Memory grows with the width,
    not with the number of rows.

    The rows run in blocks, each of which is a grid of one row of tiles, and leaves its faces to the next.
    Arguments and errors are those of `TiledSession.stream`.
    """

    def __init__(self, archive: Archive, graphs: Runner, width: int | Sequence[int]) -> None:
        directions = [sweep.direction for stage in archive.stages for sweep in stage.sweeps]
        upward = [direction for direction in directions if direction[0] < 0]
        if upward:
            raise InputError(
                f"rows cannot stream through a network with the direction {upward[0]}, which goes upwards "
                "and starts at the last row; use tiles, or train with directions that go downwards"
            )
        if archive.pool:
            raise InputError("rows cannot stream through a network that averages over the grid; use tiles")
        ndim = archive.metadata.ndim
        self._width = tuple(width) if isinstance(width, Sequence) else (width,)
        if len(self._width) != ndim - 1 or any(extent < 1 for extent in self._width):
            raise InputError(f"width must hold {ndim - 1} positive extents, got {width}")
        self._archive, self._graphs = archive, graphs
        self._unit = archive.total_window[0]  # rows of x for one of the last stage
        features = max(stage.outputs for stage in archive.stages)
        rows = BLOCK_BYTES // (self._unit * prod(self._width) * features * FLOAT_BYTES)
        self._block = min(max(rows, 1), BLOCK_ROWS) * self._unit
        # The tiles of all blocks have equal widths, as each tile leaves its faces to the tile below.
        window = archive.stages[0].window
        outputs = [-(-extent // w) for extent, w in zip((self._block, *self._width), window, strict=True)]
        across = max(1, TILE_POSITIONS // (outputs[0] * prod(outputs[2:])))
        self._tile = (self._block, *(across * w for w in window[1:2]), *self._width[1:])
        self._waiting: list[Array] = []
        self._faces: dict[FaceKey, Face] = {}
        self._is_closed = False

    def feed(self, rows: Array) -> Array:
        """Take the next rows.

        Args:
            rows: (r, *width, C), or (r, *width) if C is 1; r may be 0.

        Returns:
            (r', *⌈width/window⌉, outputs) float32: the next rows of y, as far as they are complete.

        Raises:
            InputError: the rows have another shape, or are not finite.
            MDLSTMError: ONNX Runtime fails, which closes the stream, or the stream is closed.
        """
        if self._is_closed:
            raise MDLSTMError("this stream is closed; begin another one with session.stream(...)")
        rows, channels = np.asarray(rows), self._archive.metadata.channels
        if rows.ndim == len(self._width) + 1 and channels == 1:
            rows = rows[..., None]
        if rows.shape[1:] != (*self._width, channels):
            expected = ", ".join(map(str, (*self._width, channels)))
            raise InputError(f"rows have shape {rows.shape}, expected (r, {expected})")
        if not len(rows):
            return self._run(rows)
        rows = np.concatenate([*self._waiting, to_float32(rows, "rows")])
        complete = len(rows) // self._unit * self._unit
        rows, self._waiting = rows[:complete], [rows[complete:]]
        blocks = [rows[i : i + self._block] for i in range(0, max(complete, 1), self._block)]
        return np.concatenate([self._run(block) for block in blocks])

    def close(self) -> Array:
        """End the image and return the rows of y that are left: (r', *⌈width/window⌉, outputs)."""
        rows = np.empty((0, *self._width, self._archive.metadata.channels), np.float32)
        rows = np.concatenate([rows, *self._waiting])
        self._waiting, self._is_closed = [], True
        return self._run(rows)

    def _run(self, rows: Array) -> Array:
        """The rows of y for a block of rows of x; only the last block may end within a window."""
        archive, grid = self._archive, rows.shape[:-1]
        y = np.empty((*output_extents(archive, grid), archive.metadata.outputs), np.float32)
        if len(rows):
            plan = make_plan(archive, grid, self._tile, 1)
            source = GridSource(rows, archive.metadata, "rows")
            work = Work(archive, self._graphs, plan, {}, source, y, endless=True)
            try:
                for step in range(plan.step_count):
                    for group in plan.groups(step):
                        self._faces |= work.run(group, self._faces)
                        work.store.forget(group)
            except BaseException:
                self._waiting, self._is_closed = [], True  # some faces are those of rows without y
                raise
        return y


def stream_rows(session: TiledSession, source: IO[bytes], target: IO[bytes]) -> tuple[int, int]:
    """Read rows as they come, and write rows of y when they are complete; returns both numbers.

    Both are `.npy` streams: a header with dtype and shape, then the rows. A first extent of 0 stands for
    any number of rows, up to the end; it is written where it was read.

    Raises:
        InputError: the source is no such stream, ends early, or does not fit the network.
        MDLSTMError: ONNX Runtime fails.
    """
    shape, fortran_order, dtype = read_header(source, "standard input")
    ndim, channels = session.metadata.ndim, session.metadata.channels
    fits = shape[ndim:] == (channels,) or (len(shape) == ndim and channels == 1)
    if fortran_order or dtype.kind not in "buif" or not fits:
        axes = ", ".join(session.metadata.layout.split()[1:-1])
        raise InputError(
            f"standard input holds {dtype} of shape {shape}, expected rows ({axes}, {channels})"
            f"{f' or ({axes})' if channels == 1 else ''} of real numbers in C order"
        )
    stream = session.stream(shape[1:ndim])
    squeeze = len(shape) == ndim and session.metadata.outputs == 1
    row_shape = session.output_shape((shape[0] or 1, *shape[1:ndim]))
    output_shape = (row_shape[0] if shape[0] else 0, *row_shape[1 : -1 if squeeze else None])
    header = {"descr": "<f4", "fortran_order": False, "shape": output_shape}
    np.lib.format.write_array_header_1_0(target, header)
    rows_read = rows_written = 0
    for rows in _rows(source, shape, dtype):
        rows_read += 0 if rows is None else len(rows)
        y = stream.close() if rows is None else stream.feed(rows)
        target.write(np.ascontiguousarray(y, "<f4").data if y.size else b"")
        target.flush()
        rows_written += len(y)
    return rows_read, rows_written


def _rows(source: IO[bytes], shape: tuple[int, ...], dtype: np.dtype[Any]) -> Iterator[Array | None]:
    """The rows of a stream, as many at a time as there are; None at the end."""
    row_bytes = prod(shape[1:]) * dtype.itemsize
    remaining = shape[0] * row_bytes if shape[0] else sys.maxsize
    data = b""
    read = getattr(source, "read1", source.read)
    while remaining and (part := read(min(remaining, max(READ_BYTES, row_bytes)))):
        remaining -= len(part)
        data += part
        count = len(data) // row_bytes
        if count:
            yield np.frombuffer(data, dtype, count * prod(shape[1:])).reshape(count, *shape[1:])
            data = data[count * row_bytes :]
    if data or (shape[0] and remaining):
        raise InputError("standard input ends in the middle of a row, or before the last one of its header")
    yield None
