"""`model.tiles`: a ZIP archive with one graph for each sweep, which `mdlstm export --form tiles` writes.

tiles.json names the parts:

stages    window, channels C, features F, units n, sum (whether the parts of the directions are added, or
          concatenated in this order), and sweeps: the file of each graph and its direction
pool      axes that are averaged over after the last stage
head      the file of a position-wise graph, or null
upsample  the window of the image that one position of y's grid covers before the head spreads it out
metadata  of the network, as in every exported model

Graph of a sweep: x (N, *tile, C) and for each axis d and each state of the cell, h first, an initial face,
such as h{d} and c{d}, (N, *extents of the other axes after the window, n), to part (N, *⌈tile/window⌉, F)
and the final faces, such as h{d}_n and c{d}_n.
Graph of the head: x (N, *tile, F) to y (N, *tile·upsample, outputs); pooled axes have the extent 1.

An archive may come from a stranger: members are stored without compression, named in tiles.json, and no
larger together than `max_bytes`; graphs pass the checks of every model when they are loaded.
"""

from __future__ import annotations

import io
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from hashlib import sha256
from math import prod
from pathlib import Path
from typing import Any, TypeVar

from mdlstm_tk._util.regular_files import open_regular, parse_json
from mdlstm_tk.errors import InputError
from mdlstm_tk.runtime.io.npy import MAX_BYTES, BoundedFile, read_capped
from mdlstm_tk.runtime.metadata import Metadata

SUFFIX = ".tiles"
INDEX = "tiles.json"
SCHEMA = 1
MAX_EXTENT = 2**31 - 1
MAX_FEATURES = 2**20
MAX_STAGES = 256
MAX_SWEEPS = 16  # of a stage
MAX_INDEX_BYTES = 2**23
NAME = re.compile(r"[\w/.-]{1,200}\.onnx", re.ASCII)

Value = TypeVar("Value")


@dataclass(frozen=True)
class Sweep:
    """One direction of a stage.

    Attributes:
        file: the name of its graph in the archive.
        direction: a sign for each axis.
    """

    file: str
    direction: tuple[int, ...]


@dataclass(frozen=True)
class Stage:
    """One recurrent layer.

    Attributes:
        window: extents of the part of its input that one position of its output covers.
        channels: C, of its input.
        features: F, of the part of one sweep.
        units: n.
        added: whether the parts of the sweeps are added; else they are concatenated.
        sweeps: in the order of the features.
        states: the names of the cell's states, h first. `TiledSession` reads them from the graphs.
    """

    window: tuple[int, ...]
    channels: int
    features: int
    units: int
    added: bool
    sweeps: tuple[Sweep, ...]
    states: tuple[str, ...] = ()

    @property
    def outputs(self) -> int:
        """The number of features of the stored output."""
        return self.features if self.added else self.features * len(self.sweeps)


@dataclass(frozen=True)
class Archive:
    """The content of a `model.tiles`.

    Attributes:
        metadata: of the network.
        stages: one after the other.
        pool: axes averaged over after the last one.
        head: name of the graph of the head, or None.
        upsample: positions of y for one position of the last stage.
        graphs: the content of each graph, by its name.
        digest: SHA-256 of the archive in hex.
    """

    metadata: Metadata
    stages: tuple[Stage, ...]
    pool: tuple[int, ...] = ()
    head: str | None = None
    upsample: tuple[int, ...] = ()
    graphs: Mapping[str, bytes] = field(default_factory=dict, repr=False)
    digest: str = ""

    @property
    def total_window(self) -> tuple[int, ...]:
        """Extents of the part of the input that one position of the last stage covers."""
        return tuple(prod(stage.window[d] for stage in self.stages) for d in range(self.metadata.ndim))


def is_archive(path: Path) -> bool:
    """Whether a path has the suffix of a tiled export."""
    return path.suffix.lower() == SUFFIX


def read_archive_bytes(path: Path, max_bytes: int = MAX_BYTES) -> bytes:
    """The content of the file.

    Raises:
        InputError: there is no such file, it is no regular file, or larger than `max_bytes`.
    """
    if not path.exists():
        raise InputError(f"there is no model {path}; make one with: mdlstm export RUN --form tiles")
    with open_regular(path) as file:
        return read_capped(file, str(path), max_bytes)


def parse_archive(data: bytes, label: str) -> Archive:
    """Parse and check what `mdlstm export --form tiles` wrote.

    Args:
        data: content of the archive.
        label: what error messages call it.

    Raises:
        InputError: it is no such archive, damaged, or contradicts itself.
    """
    members = _members(data, label)
    index = parse_json(members.pop(INDEX), f"{INDEX} in {label}")
    try:
        archive = _parsed(index, members, label, sha256(data).hexdigest())
    except (KeyError, TypeError, ValueError) as error:
        if isinstance(error, InputError):
            raise
        reason = f"no {error}" if isinstance(error, KeyError) else str(error)
        raise _invalid(label, f"{INDEX} has {reason:.200}") from None
    used = {sweep.file for stage in archive.stages for sweep in stage.sweeps} | {archive.head} - {None}
    if used != members.keys():
        name = min(map(str, used ^ members.keys()))
        raise _invalid(label, f"{name!a} is named in {INDEX} and missing, or the other way around")
    return archive


def _members(data: bytes, label: str) -> dict[str, bytes]:
    """The members by their names, among them `INDEX`."""
    import zipfile  # imported late: it is slow to import, and most models are .onnx

    try:
        bounded = BoundedFile(io.BytesIO(data), label)  # the list of members may be long, too
        with zipfile.ZipFile(bounded) as file:
            bounded.reading, bounded.max_read_bytes = "a member", len(data)
            infos = file.infolist()
            names = [info.filename for info in infos]
            if INDEX not in names:
                raise InputError(
                    f"{label} is no tiled export (it holds no {INDEX}); make one with: "
                    "mdlstm export RUN --form tiles"
                )
            if len(set(names)) != len(names) or len(names) > MAX_STAGES * MAX_SWEEPS + 2:
                raise _invalid(label, f"it holds {len(names)} members, or two of one name")
            for info in infos:
                if info.filename != INDEX and not NAME.fullmatch(info.filename):
                    raise _invalid(label, f"it holds a member of the name {info.filename!a:.60}")
                if info.compress_type != zipfile.ZIP_STORED or info.flag_bits & 1:
                    raise _invalid(label, f"{info.filename!a} is compressed or encrypted")
                if info.filename == INDEX and info.file_size > MAX_INDEX_BYTES:
                    raise _invalid(label, f"{INDEX} takes more than {MAX_INDEX_BYTES} bytes")
            if sum(info.file_size for info in infos) > len(data):  # members that overlap
                raise _invalid(label, "its members are larger than the file")
            return {info.filename: file.read(info) for info in infos}
    except InputError:
        raise
    except Exception:  # zipfile raises all kinds of exceptions for damaged archives
        raise InputError(
            f"{label} is no tiled export, or damaged; make one with: mdlstm export RUN --form tiles"
        ) from None


def _parsed(index: Any, members: dict[str, bytes], label: str, digest: str) -> Archive:
    """Parse `INDEX`; raises a KeyError, TypeError or ValueError with what is wrong."""
    if not isinstance(index, dict) or index.get("schema") != SCHEMA:
        raise InputError(
            f"{label} has another schema than {SCHEMA}, which this version reads; install a newer "
            "mdlstm-tk, or export the model again"
        )
    metadata = Metadata.from_props(_props(index["metadata"]), label)
    simple = len(metadata.output_names) == 1 and metadata.inputs == ("x",) and metadata.channels_last
    if metadata.form != "tiles" or not simple:
        raise ValueError("metadata that are not those of a tiled export")
    ndim = metadata.ndim
    stages = tuple(_stage(entry, ndim) for entry in _list(index["stages"], 1, MAX_STAGES))
    channels = metadata.channels
    for stage in stages:
        if stage.channels != channels:
            raise ValueError(f"a stage that takes {stage.channels} channels and gets {channels}")
        channels = stage.outputs
    pool = tuple(_integer(axis, 0, ndim - 1) for axis in _list(index["pool"], 0, ndim))
    if len(set(pool)) != len(pool):
        raise ValueError("an axis twice in pool")
    head = None if index["head"] is None else str(index["head"]["file"])
    if head is None and channels != metadata.outputs:
        raise ValueError(f"no head, and {channels} features for {metadata.outputs} outputs")
    upsample = _extents(index["upsample"], ndim) if index["upsample"] else (1,) * ndim
    return Archive(metadata, stages, pool, head, upsample, members, digest)


def _stage(entry: Any, ndim: int) -> Stage:
    sweeps = []
    for sweep in _list(entry["sweeps"], 1, MAX_SWEEPS):
        direction = tuple(_integer(sign, -1, 1) for sign in _list(sweep["direction"], ndim, ndim))
        if 0 in direction or any(sweep.get("shift") or ()):
            raise ValueError("a direction of 0, or a shift")
        sweeps.append(Sweep(_text(sweep["file"]), direction))
    added = entry["sum"]
    if type(added) is not bool:
        raise ValueError("a stage whose 'sum' is neither true nor false")
    channels, features, units = (
        _integer(entry[name], 1, MAX_FEATURES) for name in ("channels", "features", "units")
    )
    return Stage(_extents(entry["window"], ndim), channels, features, units, added, tuple(sweeps))


def _props(value: Any) -> dict[str, str]:
    if not isinstance(value, dict) or not all(isinstance(text, str) for text in value.values()):
        raise ValueError("metadata that are no texts")
    return value


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise ValueError("a file name that is no text")
    return value


def _extents(value: Any, ndim: int) -> tuple[int, ...]:
    return tuple(_integer(extent, 1, MAX_EXTENT) for extent in _list(value, ndim, ndim))


def _list(value: Any, least: int, most: int) -> list[Any]:
    if not isinstance(value, list) or not least <= len(value) <= most:
        raise ValueError(f"{value!a:.60} where a list of {least} to {most} values is expected")
    return value


def _integer(value: Any, least: int, most: int) -> int:
    if type(value) is not int or not least <= value <= most:
        raise ValueError(f"{value!a:.60} where an integer from {least} to {most} is expected")
    return value


def _invalid(label: str, problem: str) -> InputError:
    return InputError(f"{label} is damaged ({problem}); export the model again")
