"""`model.tiles`: a ZIP archive with one graph for each sweep, which `mdlstm export --form tiles` writes.

tiles.json names the parts (`schema` is its version):

stages    window, channels C, features F, units n, sum (whether the parts of the directions are added, or
          concatenated in this order), and sweeps: the file of each graph and its direction
pool      axes that are averaged over after the last stage
head      {"file": the name of a position-wise graph}, or null
upsample  positions of y, by axis, that the head makes of one position of the last stage; empty: 1 each
metadata  of the network, as in every exported model

Graph of a sweep: x (N, *tile, C) and for each axis d and each state of the cell, h first, an initial face,
such as h{d} and c{d}, (N, *extents of the other axes after the window, n), to part (N, *⌈tile/window⌉, F)
and the final faces, such as h{d}_n and c{d}_n.
Graph of the head: x (N, *tile, F) to y (N, *tile·upsample, outputs); pooled axes have the extent 1.

Members are stored without compression and named in tiles.json. Archives of version 0.6 load.
"""

from __future__ import annotations

import io
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from hashlib import sha256
from math import prod
from operator import attrgetter
from typing import Any

from mdlstm_tk._util.text import counted, reason_of
from mdlstm_tk.errors import TILED_EXPORT, InputError
from mdlstm_tk.runtime.metadata import Metadata
from mdlstm_tk.runtime.tiles.plan import Sweep

INDEX = "tiles.json"
SCHEMA = 1


@dataclass(frozen=True)
class Stage:
    """One recurrent layer."""

    window: tuple[int, ...]  # extents of the input that one position of the output covers
    channels: int  # C of the input
    features: int  # F of the part of one sweep
    units: int  # n
    added: bool  # whether parts are added; else they are concatenated
    sweeps: tuple[Sweep, ...]  # in the order of the features
    states: tuple[str, ...] = ()  # of the cell, h first; empty until `TiledSession` has read the graphs

    @property
    def outputs(self) -> int:
        """The number of features of the stored output."""
        return self.features if self.added else self.features * len(self.sweeps)


@dataclass(frozen=True)
class Archive:
    """The content of a `model.tiles`."""

    metadata: Metadata  # of the network
    stages: tuple[Stage, ...]  # one after the other
    pool: tuple[int, ...] = ()  # axes that are averaged over after the last stage
    head: str | None = None  # the name of its graph
    upsample: tuple[int, ...] = ()  # positions of y, by axis, for one position of the last stage
    graphs: Mapping[str, bytes] = field(default_factory=dict, repr=False)  # by name
    digest: str = ""  # SHA-256 of the archive in hex

    @property
    def sweeps(self) -> list[Sweep]:
        """The sweeps of all stages in the order in which they run."""
        return sorted(
            (sweep for stage in self.stages for sweep in stage.sweeps), key=attrgetter("stage", "rank")
        )

    @property
    def total_window(self) -> tuple[int, ...]:
        """Extents of the part of the input that one position of the last stage covers."""
        return tuple(prod(stage.window[d] for stage in self.stages) for d in range(self.metadata.ndim))

    @property
    def window(self) -> tuple[int, ...]:
        """Extents of the part of the input that one position of y stands for."""
        if self.pool:
            return self.total_window
        pairs = zip(self.total_window, self.upsample, strict=True)
        return self.metadata.window or tuple(w // up for w, up in pairs)

    def output_shape(self, grid: Sequence[int]) -> tuple[int, ...]:
        """The shape of y for one sample: the extents of its grid, without pooled axes, and the outputs."""
        extents = enumerate(zip(grid, self.window, strict=True))
        return (*(-(-e // w) for d, (e, w) in extents if d not in self.pool), self.metadata.outputs)


def parse_archive(data: bytes, label: str) -> Archive:
    """Parse what `mdlstm export --form tiles` wrote; `label` names it in error messages.

    Raises:
        InputError: the data are not a tiled export, are damaged, or are inconsistent.
    """
    import zipfile  # imported late: it is slow to import, and most models are .onnx

    try:
        with zipfile.ZipFile(io.BytesIO(data)) as file:
            infos = file.infolist()
            # Stored members are together no larger than the file, whose size is bounded.
            if any(info.compress_type != zipfile.ZIP_STORED for info in infos):
                raise ValueError("a member is compressed")
            if sum(info.file_size for info in infos) > len(data):
                raise ValueError("its members overlap")
            members = {info.filename: file.read(info) for info in infos}
        if INDEX not in members:
            raise ValueError(f"it holds no {INDEX}")
    except Exception as error:  # zipfile raises all kinds of exceptions for damaged archives
        text = f"{label} is no tiled export, or damaged ({reason_of(error)}); make one with: "
        raise InputError(text, TILED_EXPORT) from None
    try:
        index = json.loads(members.pop(INDEX))
        if index["schema"] != SCHEMA:
            raise InputError(
                f"{label} has the schema {index['schema']!a:.20}, expected {SCHEMA}; install a newer "
                "mdlstm-tk, or export the model again"
            )
        return _archive(index, members, label, sha256(data).hexdigest())
    except InputError:  # a ValueError, too
        raise
    except (KeyError, TypeError, ValueError, AttributeError, RecursionError) as error:
        reason = f"no {error}" if isinstance(error, KeyError) else f"{error}"
        raise InputError(f"{label} is damaged ({INDEX}: {reason:.200}); export the model again") from None


def _archive(index: Any, members: dict[str, bytes], label: str, digest: str) -> Archive:
    """The parts that `INDEX` names; raises what `parse_archive` catches."""
    metadata = Metadata.from_props(index["metadata"], label)
    ndim, channels = metadata.ndim, metadata.channels
    names = metadata.inputs, len(metadata.output_names)
    if metadata.form != "tiles" or names != (("x",), 1) or not metadata.channels_last:
        raise ValueError("its metadata are not those of a tiled export")
    stages = tuple(_stage(entry, s, ndim) for s, entry in enumerate(index["stages"]))
    for stage in stages:
        if stage.channels != channels:
            raise ValueError(f"a stage takes {counted(stage.channels, 'channel')} and gets {channels}")
        channels = stage.outputs
    head = None if index["head"] is None else str(index["head"]["file"])
    if not stages:
        raise ValueError("there are no stages")
    if head is None and channels != metadata.outputs:
        outputs = counted(metadata.outputs, "output")
        raise ValueError(f"{counted(channels, 'feature')} and no head for {outputs}")
    pool = _integers(index["pool"], 0)
    if len(set(pool)) != len(pool) or max(pool, default=0) >= ndim:
        raise ValueError(f"pool {pool} for {counted(ndim, 'axis', 'axes')}")
    upsample = _integers(index["upsample"] or (1,) * ndim, 1, ndim)
    expected_files = {sweep.file for stage in stages for sweep in stage.sweeps} | {head} - {None}
    if mismatch := expected_files ^ members.keys():
        raise ValueError(f"{min(map(ascii, mismatch))} is listed here or in the archive, but not in both")
    archive = Archive(metadata, stages, pool, head, upsample, members, digest)
    window, covered = archive.window, archive.total_window
    if not pool and any(w * up != c for w, up, c in zip(window, upsample, covered, strict=True)):
        raise ValueError(
            f"the window {window} of its metadata contradicts its stages, {covered}, upsampled by "
            f"{upsample}"
        )
    return archive


def _stage(entry: Any, number: int, ndim: int) -> Stage:
    sweeps = tuple(
        Sweep(str(sweep["file"]), _integers(sweep["direction"], -1, ndim), number, position)
        for position, sweep in enumerate(entry["sweeps"])
    )
    if not sweeps or any(abs(sign) != 1 for sweep in sweeps for sign in sweep.direction):
        raise ValueError("each stage needs at least one sweep, with signs 1 or -1")
    if not isinstance(entry["sum"], bool):
        raise ValueError(f"sum must be true or false, got {entry['sum']!a:.20}")
    channels, features, units = _integers([entry[k] for k in ("channels", "features", "units")], 1)
    return Stage(_integers(entry["window"], 1, ndim), channels, features, units, entry["sum"], sweeps)


def _integers(values: Any, least: int, count: int | None = None) -> tuple[int, ...]:
    integers = tuple(values)
    if any(type(value) is not int or value < least for value in integers):
        raise ValueError(f"{integers!a:.60} where integers of at least {least} are expected")
    if count is not None and len(integers) != count:
        raise ValueError(f"{integers!a:.60} where {count} integers are expected")
    return integers
