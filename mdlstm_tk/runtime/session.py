"""`Session`: run an exported model with ONNX Runtime. Needs neither torch nor onnx."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from functools import partial
from math import prod
from pathlib import Path
from typing import Any

import numpy as np

from mdlstm_tk.errors import InputError, MDLSTMError
from mdlstm_tk.io import TILED_SUFFIX, Array
from mdlstm_tk.io.files import read_bytes
from mdlstm_tk.io.metadata import Metadata as Metadata
from mdlstm_tk.runtime import shapes
from mdlstm_tk.runtime.model_check import check_model
from mdlstm_tk.runtime.ort import Graph
from mdlstm_tk.runtime.shapes import Batch

BATCH_SIZE = 64  # samples; no model that was measured ran faster with more
BATCH_POSITIONS = BATCH_SIZE * 64 * 64  # memory of a run grows with its positions and the hidden size

Outputs = Array | dict[str, Array]
"""y, or several outputs by name."""
Feeds = dict[str, Array]
Piece = tuple[int, Feeds]  # samples of the batch of this number, which run together


class Session:
    """An exported model, loaded and ready to run.

        >>> session = Session("model-8x8.onnx")
        >>> y = session(x)                      # x (N, 8, 8, C) → y (N, 8, 8, outputs)
        >>> y = session(x[0])                   # without the batch axis: (8, 8, C) → (8, 8, outputs)
        >>> y = session(x[0, ..., 0])           # C = 1 and one output: (8, 8) → (8, 8)
        >>> y = session(x, sizes=sizes)         # exported with --padded: valid extents (N, 2)
        >>> y, aux = session(x).values()        # several outputs: by the names in metadata.output_names

    Calls from several threads are safe. A session can be pickled: the copy loads the model again.

    A file passes the model check before ONNX Runtime sees it (`mdlstm_tk.runtime.model_check`), so it can
    neither read nor write files. It may take any time and memory; `mdlstm infer --isolated` limits both.

    Args:
        model: path of an `.onnx` file that `mdlstm export` wrote, or its content.
        device: "auto" (CUDA if it works, else CPU), "cpu", "cuda" or "cuda:N".
        threads: CPU threads of one run; 0: one per core. One is as fast as several for small models.
        trusted: allow operators outside the list of the model check, for a file of yours.

    Attributes:
        metadata: what the file says about the model.
        device: "cpu" or "cuda:N", where the model runs.
        reason: why "auto" did not take the CUDA that this ONNX Runtime supports; else None.

    Raises:
        InputError: the file is not a model that mdlstm-tk exported, or is refused.
        DeviceError: CUDA was asked for and cannot be used. It never falls back to the CPU silently.
        MissingExtraError: ONNX Runtime is not installed.
    """

    def __init__(
        self,
        model: str | Path | bytes,
        device: str = "auto",
        *,
        threads: int = 1,
        trusted: bool = False,
    ) -> None:
        data, label = read_model(model)
        self.metadata = Metadata.from_props(check_model(data, label, trusted=trusted), label)
        self.graph = Graph(data, label, device, threads)
        self.device, self.reason = self.graph.device, self.graph.reason
        self._arguments: Any = data, {"device": device, "threads": threads, "trusted": trusted}
        names = {*self.metadata.inputs}, {*self.metadata.output_names}
        if names != ({*self.graph.dtypes}, {*self.graph.outputs}):
            raise InputError(f"{label} has other inputs or outputs than its metadata say; export it again")

    def __call__(self, x: Any, sizes: Any = None, **further: Any) -> Outputs:
        """Run the model.

        Args:
            x: real numbers of shape (N, *grid, C), (*grid, C) or, if C is 1, (*grid). For a channels-first
                model the channels come before the grid.
            sizes: valid extents of each sample, integers (N, D), for a model that was exported with them.
                Values of y outside them mean nothing.
            **further: the model's further inputs by name, with a batch axis if x has one.

        Returns:
            y as float32, (N, *⌈grid/window⌉, outputs), or (N, outputs) if it has no grid; with a batch axis
            if x has one, and no channel axis if x has none and there is one output. A model that takes
            sizes takes smaller grids than its own, too. If the model has several outputs, a dict of them by
            name.

        Raises:
            InputError: an array does not fit the model.
            MDLSTMError: ONNX Runtime fails.
        """
        batch = self.prepare(x, sizes, **further)
        return shapes.restore(self.run([batch], len(batch.feeds["x"]))[0], batch, self.metadata)

    def run_many(self, arrays: Sequence[Any], batch_size: int | None = None) -> list[Outputs]:
        """Run the model on arrays of different shapes in as few batches as possible: what a call returns
        for each. If the model takes `sizes`, all are padded; else arrays of equal grids share a batch."""
        batches = [self.prepare(x) for x in arrays]
        outputs = self.run(batches, batch_size)
        return [shapes.restore(y, batch, self.metadata) for y, batch in zip(outputs, batches, strict=True)]

    def prepare(self, x: Any, sizes: Any = None, **further: Any) -> Batch:
        """The arguments of a call as the model takes them, checked."""
        return shapes.prepare(x, self.metadata, self.graph.dtypes, sizes, further)

    def run(self, batches: Sequence[Batch], batch_size: int | None = None) -> list[dict[str, Array]]:
        """The outputs by name, (N, …), for each of what `prepare` returned. Which samples share a run
        depends on shapes alone.

        Args:
            batches: any number.
            batch_size: samples of one run. None: 64, or fewer for grids above 64×64.
        """
        grid_of, padded = self.metadata.grid_of, self.metadata.takes_sizes
        groups: dict[Any, list[Piece]] = defaultdict(list)
        for k, batch in enumerate(batches):
            own = [name for name in batch.feeds if not (padded and name == "x")]
            key = tuple((name, batch.feeds[name].shape[1:]) for name in own)
            limit = self._limit([batch.feeds], batch_size)
            for i in range(0, len(batch.feeds["x"]), limit):
                groups[key].append((k, {name: x[i : i + limit] for name, x in batch.feeds.items()}))
        parts: dict[int, list[dict[str, Array]]] = defaultdict(list)
        for pieces in groups.values():
            if padded:  # grids of one size are padded least
                pieces.sort(key=lambda piece: prod(grid_of(piece[1]["x"].shape)))
            for together in self._runs(pieces, batch_size):
                outputs = self._run([feeds for _, feeds in together])
                for (k, _), of_piece in zip(together, outputs, strict=True):
                    parts[k].append(of_piece)
        names = self.metadata.output_names
        of_batches = (parts[k] for k in range(len(batches)))
        return [{name: _join([part[name] for part in of_one]) for name in names} for of_one in of_batches]

    def _runs(self, pieces: Sequence[Piece], batch_size: int | None) -> Iterator[list[Piece]]:
        """Divide pieces into runs of at most so many samples, or of a few more positions than
        `BATCH_POSITIONS`."""
        run: list[Piece] = []
        for piece in pieces:
            feeds = [feeds for _, feeds in (*run, piece)]
            if run and sum(len(each["x"]) for each in feeds) > self._limit(feeds, batch_size):
                yield run
                run = []
            run.append(piece)
        yield run

    def _limit(self, feeds: Sequence[Feeds], batch_size: int | None) -> int:
        """The number of samples of a run."""
        positions = prod(shapes.shared_grid(feeds, self.metadata))
        return batch_size or max(1, min(BATCH_SIZE, BATCH_POSITIONS // positions))

    def _run(self, pieces: Sequence[Feeds]) -> list[dict[str, Array]]:
        """The outputs for pieces that share a run."""
        m = self.metadata
        if m.takes_sizes:
            feeds = shapes.pad(pieces, m)
        else:
            feeds = {name: _join([piece[name] for piece in pieces]) for name in pieces[0]}
        outputs = self.graph(feeds)
        y = outputs[m.output_names[0]]
        has_features = m.outputs in (1, *y.shape[1:])  # which may follow the grid of a channels-first y
        if not has_features or any(len(each) != len(feeds["x"]) for each in outputs.values()):
            raise MDLSTMError(f"the model returned y of shape {y.shape}, which contradicts its metadata")
        ends = np.cumsum([len(piece["x"]) for piece in pieces])[:-1]
        split = {name: np.split(each, ends) for name, each in outputs.items()}
        results = [{name: each[k] for name, each in split.items()} for k in range(len(pieces))]
        if not m.takes_sizes:
            return results
        whole, *grids = [m.grid_of(each["x"].shape) for each in (feeds, *pieces)]
        return [
            {name: shapes.crop(each, m.windows[name], grid, whole, m) for name, each in result.items()}
            for result, grid in zip(results, grids, strict=True)
        ]

    def __reduce__(self) -> tuple[Any, ...]:
        data, options = self._arguments
        return partial(type(self), **options), (data,)


def read_model(model: str | Path | bytes) -> tuple[bytes, str]:
    """The content of a model file, and its name in error messages. ONNX Runtime gets no path that it could
    resolve external data against."""
    return (model, "the model") if isinstance(model, bytes) else (read_bytes(model), str(model))


def read_metadata(model: Path) -> Metadata:
    """Metadata in the file of a model, an `.onnx` or a `.tiles`. It is not run."""
    data, label = read_model(model)
    if model.suffix == TILED_SUFFIX:
        from mdlstm_tk.runtime.tiles.archive import parse_archive  # imported late: most models are .onnx

        return parse_archive(data, label).metadata
    return Metadata.from_props(check_model(data, label, trusted=True), label)


def _join(arrays: Sequence[Array]) -> Array:
    return arrays[0] if len(arrays) == 1 else np.concatenate(arrays)
