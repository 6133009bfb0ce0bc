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
"""

from __future__ import annotations

import io
import json
import zipfile
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from math import prod
from typing import Any, NamedTuple

from mdlstm_tk.errors import InputError
from mdlstm_tk.io.metadata import Extents, Metadata

SCHEMA, INDEX = 1, "tiles.json"


class Sweep(NamedTuple):
    """One direction of a stage: the name of its graph, a sign for each axis, the number of the stage, and
    the place of its part among the features of the stage."""

    file: str
    direction: Extents
    stage: int
    position: int

    @property
    def rank(self) -> int:
        """The place in the order in which the sweeps of a stage run: each direction turns as few axes as it
        can."""
        value = 0
        for sign in self.direction:  # decodes a Gray code
            value = 2 * value + ((value & 1) ^ (sign < 0))
        return value


class Stage(NamedTuple):
    """One recurrent layer: see the head of this file."""

    window: Extents
    channels: int
    features: int
    units: int
    added: bool
    sweeps: tuple[Sweep, ...]

    @property
    def outputs(self) -> int:
        return self.features if self.added else self.features * len(self.sweeps)


@dataclass(frozen=True)
class Archive:
    """The content of a `model.tiles`. `sweeps` are those of all stages, in the order in which they run."""

    metadata: Metadata
    stages: tuple[Stage, ...]
    sweeps: tuple[Sweep, ...]
    pool: Extents
    head: str | None
    upsample: Extents
    graphs: Mapping[str, bytes]

    def output_shape(self, grid: Sequence[int]) -> Extents:
        """The shape of y for one sample, without pooled axes."""
        total = [prod(stage.window[d] for stage in self.stages) for d in range(len(grid))]
        windows = self.metadata.window or [w // up for w, up in zip(total, self.upsample, strict=True)]
        extents = enumerate(zip(grid, windows, strict=True))
        return (*(-(-e // w) for d, (e, w) in extents if d not in self.pool), self.metadata.outputs)


def parse_archive(data: bytes, label: str) -> Archive:
    """Parse what `mdlstm export --form tiles` wrote."""
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as file:
            if sum(info.file_size for info in file.infolist()) > len(data):
                raise ValueError("its members are compressed, or overlap")
            members = {name: file.read(name) for name in file.namelist()}
        index = json.loads(members.pop(INDEX))
        if index["schema"] != SCHEMA:
            raise ValueError(f"schema {index['schema']!a:.20}, expected {SCHEMA}")
        metadata = Metadata.from_props(index["metadata"], label)
        ndim, stages = metadata.ndim, []
        for s, entry in enumerate(index["stages"]):
            files = [(str(each["file"]), _integers(each["direction"])) for each in entry["sweeps"]]
            sweeps = tuple(Sweep(*each, s, k) for k, each in enumerate(files))
            channels, features, units = _integers(entry[n] for n in ("channels", "features", "units"))
            window, is_sum = _integers(entry["window"]), bool(entry["sum"])
            stages.append(Stage(window, channels, features, units, is_sum, sweeps))
        head = index["head"] and str(index["head"]["file"])
        upsample = _integers(index["upsample"] or (1,) * ndim)
        order = tuple(sweep for stage in stages for sweep in sorted(stage.sweeps, key=lambda s: s.rank))
        expected = {sweep.file for sweep in order} | {head} - {None}
        if not stages or expected != members.keys() or not metadata.channels_last:
            raise ValueError("its parts do not fit together")
        return Archive(metadata, tuple(stages), order, _integers(index["pool"]), head, upsample, members)
    except InputError:
        raise
    except Exception as error:  # zipfile raises all kinds of exceptions for damaged archives
        text = f"{label} is no tiled export, or damaged ({error!r:.120}); export the model again"
        raise InputError(text) from None


def _integers(values: Iterable[Any]) -> Extents:
    return tuple(map(int, values))
