"""A small recurrence in NumPy that tiles are swept with in place of graphs; the whole grid is the truth."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import product
from math import prod
from typing import Any

import numpy as np
import numpy.typing as npt

from mdlstm_tk.runtime import Metadata
from mdlstm_tk.runtime.tiles.archive import Archive, Stage, Sweep

Floats = npt.NDArray[np.floating[Any]]


class FakeGraph:
    """h = tanh(W x + Σ_d u_d h_d), c = the mean of what came before plus h; part = h V + c V'."""

    def __init__(self, stage: Stage, direction: Sequence[int], rng: np.random.Generator) -> None:
        self.stage, self.direction = stage, direction
        n, inner = stage.units, prod(stage.window) * stage.channels
        self.w = rng.normal(size=(inner, n))
        self.u = rng.normal(size=(len(direction), n)) / 2
        self.v = rng.normal(size=(2, n, stage.features))

    def run(self, feeds: Mapping[str, Floats]) -> dict[str, Floats]:
        """Compute the outputs of the graph of a sweep."""
        x, window, ndim = feeds["x"], self.stage.window, len(self.direction)
        extents = [-(-e // w) for e, w in zip(x.shape[1:-1], window, strict=True)]
        pads = [(0, e * w - f) for e, w, f in zip(extents, window, x.shape[1:-1], strict=True)]
        x = np.pad(x, [(0, 0), *pads, (0, 0)])
        cut = [size for pair in zip(extents, window, strict=True) for size in pair]
        order = [0, *range(1, 2 * ndim, 2), *range(2, 2 * ndim + 1, 2), 2 * ndim + 1]
        x = x.reshape(len(x), *cut, x.shape[-1]).transpose(order).reshape(len(x), *extents, -1)
        flip = tuple(1 + d for d in range(ndim) if self.direction[d] < 0)
        inputs = np.flip(x, flip) @ self.w
        h, c = (np.zeros((len(x), *(e + 1 for e in extents), self.stage.units)) for _ in "hc")
        for d in range(ndim):
            place = (slice(None), *(0 if e == d else slice(1, None) for e in range(ndim)))
            other = tuple(
                1 + k for k, e in enumerate(e for e in range(ndim) if e != d) if self.direction[e] < 0
            )
            h[place], c[place] = np.flip(feeds[f"h{d}"], other), np.flip(feeds[f"c{d}"], other)
        for position in product(*(range(1, e + 1) for e in extents)):
            before = [
                (slice(None), *position[:d], position[d] - 1, *position[d + 1 :]) for d in range(ndim)
            ]
            here = (slice(None), *position)
            inner = (slice(None), *(p - 1 for p in position))
            h[here] = np.tanh(inputs[inner] + sum(h[b] * u for b, u in zip(before, self.u, strict=True)))
            c[here] = sum(c[b] for b in before) / (ndim + 1) + h[here]
        inside = (slice(None), *(slice(1, None),) * ndim)
        ys = np.flip(h[inside] @ self.v[0] + c[inside] @ self.v[1], flip)
        result = {"part": ys}
        for d in range(ndim):
            place = (slice(None), *(-1 if e == d else slice(1, None) for e in range(ndim)))
            other = tuple(
                1 + k for k, e in enumerate(e for e in range(ndim) if e != d) if self.direction[e] < 0
            )
            result |= {f"h{d}_n": np.flip(h[place], other), f"c{d}_n": np.flip(c[place], other)}
        return {name: y.astype(np.float32) for name, y in result.items()}


class FakeHead:
    """y = x A, each position spread over `upsample`."""

    def __init__(
        self, features: int, outputs: int, upsample: Sequence[int], rng: np.random.Generator
    ) -> None:
        self.a, self.upsample = rng.normal(size=(features, outputs)), upsample

    def run(self, feeds: Mapping[str, Floats]) -> dict[str, Floats]:
        """Compute the output of the graph of a head."""
        y = feeds["x"] @ self.a
        for axis, up in enumerate(self.upsample, start=1):
            y = y.repeat(up, axis)
        return {"y": y.astype(np.float32)}


class FakeNetwork:
    """A random network: its archive without graphs, and what runs in their place."""

    def __init__(
        self, seed: int, ndim: int, *, pool: Sequence[int] = (), stages: int | None = None
    ) -> None:
        rng = np.random.default_rng(seed)
        described = []
        channels = first = int(rng.integers(1, 3))
        for k in range(stages or int(rng.integers(1, 3))):
            window = tuple(map(int, rng.integers(1, 3, size=ndim)))
            every = list(product((1, -1), repeat=ndim))
            chosen = rng.permutation(len(every))[: int(rng.integers(1, len(every) + 1))]
            sweeps = tuple(Sweep(f"stage-{k}/sweep-{i}.onnx", every[i]) for i in chosen)
            features, added = int(rng.integers(1, 4)), bool(rng.integers(2))
            stage = Stage(window, channels, features, 2, added, sweeps, ("h", "c"))
            described.append(stage)
            channels = stage.outputs
        total = tuple(prod(stage.window[d] for stage in described) for d in range(ndim))
        upsample = (1,) * ndim if pool else total
        metadata = Metadata(
            "0",
            None,
            "tiles",
            f"N {' '.join('DHW'[-ndim:])} C",
            first,
            2,
            window=None if pool else (1,) * ndim,
        )
        self.archive = Archive(metadata, tuple(described), tuple(pool), "head.onnx", upsample)
        self.graphs = {
            sweep.file: FakeGraph(stage, sweep.direction, rng)
            for stage in described
            for sweep in stage.sweeps
        }
        self.head = FakeHead(channels, 2, upsample, rng)

    def run(self, feeds: Mapping[str, Floats], graph: str) -> dict[str, Floats]:
        """Compute the outputs of a graph, as `mdlstm_tk.runtime.runner.Runner` does."""
        return self.head.run(feeds) if graph == "head.onnx" else self.graphs[graph].run(feeds)

    def interrupt(self) -> None:
        """Runs end soon by themselves."""

    def whole(self, x: Floats) -> Floats:
        """y for x (*grid, C), in one go."""
        stored, ndim = x[None], self.archive.metadata.ndim
        for stage in self.archive.stages:
            outputs = tuple(-(-e // w) for e, w in zip(stored.shape[1:-1], stage.window, strict=True))
            zeros = {
                f"{name}{d}": np.zeros((1, *outputs[:d], *outputs[d + 1 :], stage.units), np.float32)
                for d in range(ndim)
                for name in "hc"
            }
            parts = [self.graphs[sweep.file].run({"x": stored} | zeros)["part"] for sweep in stage.sweeps]
            stored = np.sum(parts, axis=0) if stage.added else np.concatenate(parts, axis=-1)
        if self.archive.pool:
            stored = stored.mean(tuple(axis + 1 for axis in self.archive.pool), keepdims=True)
        y = self.head.run({"x": stored})["y"][0]
        if self.archive.pool:
            return y.squeeze(self.archive.pool)
        return y[tuple(map(slice, x.shape[:-1]))]
