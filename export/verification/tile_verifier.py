"""The check of a tiles export: random grids, cut into random tiles, against the network's own forward.

The tiles are run one anti-diagonal after another by the few lines below, which share nothing with
`mdlstm_tk.runtime.tiles`, so that the two can be held against each other.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import pairwise, product
from typing import Any

import numpy as np

from mdlstm_tk.errors import InputError, MDLSTMError, ParityError
from mdlstm_tk.export.spec import ExportSpec
from mdlstm_tk.export.verification.parity import (
    Array,
    Float32Array,
    compare,
    feature_scale,
    float64_reference,
)
from mdlstm_tk.runtime.io.npy import MAX_BYTES
from mdlstm_tk.runtime.local_runner import LocalRunner
from mdlstm_tk.sizes import format_size

Tile = tuple[int, ...]
Edges = Sequence[Sequence[tuple[int, int]]]  # for each axis, where each tile begins and ends
Run = Callable[[str, Mapping[str, Array]], dict[str, Array]]
MAX_BATCH = 4  # tiles
TILINGS = 3  # of each grid


def verify_tiles(
    index: Mapping[str, Any], graphs: Mapping[str, bytes], spec: ExportSpec, atol: float
) -> float:
    """Compare the graphs of an archive, in tiles, with the network that they come from.

    Args:
        index: the content of tiles.json.
        graphs: the content of each graph, by name.
        spec: the network.
        atol: allowed absolute error in units of the largest output.

    Returns:
        The largest absolute error.

    Raises:
        MDLSTMError: a graph is refused by the check of all models, or returns something of another shape.
        ParityError: the two disagree.
    """
    name = type(spec.module).__name__
    run = graph_runner(graphs, name)
    exact, rng = float64_reference(spec.module), np.random.default_rng(0)
    computed: list[tuple[str, Array]] = []
    expected = []
    for grid, _ in spec.shapes:
        x = rng.standard_normal((2, *grid, spec.channels)).astype(np.float32)
        y = exact(x)
        for _ in range(TILINGS):
            computed.append((format_size(grid), run_in_tiles(index, run, x, rng)))
            expected.append(y)
    scale = feature_scale(expected)
    largest = 0.0
    for (size, result), y in zip(computed, expected, strict=True):
        if result.shape != y.shape:
            raise ParityError(
                f"{name} returns shape {y.shape} on a {size} grid, but what its tile_stages() describes "
                f"returns {result.shape}"
            )
        parity = compare(result, y, atol, scale=scale)
        if not parity.passed:
            raise ParityError(
                f"error {parity.max_abs:.1e} of tiles against float64 on a {size} grid, allowed is "
                f"{atol:g}·{parity.scale:.3g}; does tile_stages() of {name} describe what its forward "
                "computes, and do before and head compute each position from that position alone?"
            )
        largest = max(largest, parity.max_abs)
    return largest


def graph_runner(graphs: Mapping[str, bytes], network: str) -> Run:
    """A function that runs a graph, by its name, on ONNX Runtime.

    Raises:
        MDLSTMError: the check of all models refuses a graph.
    """
    try:
        runners = {
            name: LocalRunner(data, name, "cpu", threads=1, timeout=None, max_bytes=MAX_BYTES, tf32=False)
            for name, data in graphs.items()
        }
    except InputError as error:
        reason = str(error).split("; ")[0]
        raise MDLSTMError(
            f"{network} cannot be exported, since a session would refuse it: {reason}; compute that part "
            "in another way, or outside the network"
        ) from error
    return lambda name, feeds: runners[name].run(feeds)


def run_in_tiles(index: Mapping[str, Any], run: Run, x: Float32Array, rng: np.random.Generator) -> Array:
    """What a network returns for x (N, *grid, C), computed in random tiles.

    Args:
        index: the content of tiles.json.
        run: runs a graph.
        x: the input.
        rng: chooses the tiles of each sweep, and how many run in one batch.
    """
    ndim = x.ndim - 2
    stored = x
    for stage in index["stages"]:
        grid = [-(-extent // w) for extent, w in zip(stored.shape[1:-1], stage["window"], strict=True)]
        parts = []
        for sweep in stage["sweeps"]:
            edges = [_random_edges(extent, rng) for extent in grid]
            parts.append(_run_sweep(stage, sweep, run, stored, edges, rng))
        stored = sum(parts[1:], parts[0]) if stage["sum"] else np.concatenate(parts, axis=-1)
    pool = tuple(1 + axis for axis in index["pool"])
    if pool:
        stored = stored.mean(axis=pool, keepdims=True, dtype=np.float64).astype(np.float32)
    y = run(index["head"]["file"], {"x": stored})["y"] if index["head"] else stored
    if index["upsample"]:
        y = y[tuple(slice(extent) for extent in x.shape[: 1 + ndim])]
    return y.squeeze(pool)


def _random_edges(extent: int, rng: np.random.Generator) -> list[tuple[int, int]]:
    cuts = rng.choice(np.arange(1, extent), size=rng.integers(0, min(extent, 4)), replace=False)
    return list(pairwise([0, *sorted(cuts.tolist()), extent]))


def _run_sweep(
    stage: Mapping[str, Any],
    sweep: Mapping[str, Any],
    run: Run,
    x: Array,
    edges: Edges,
    rng: np.random.Generator,
) -> Array:
    """What one direction adds to the output of a stage."""
    grid, direction = [tiles[-1][1] for tiles in edges], sweep["direction"]
    edges_of_x = [
        [(start * size, min(stop * size, extent)) for start, stop in tiles]
        for tiles, size, extent in zip(edges, stage["window"], x.shape[1:-1], strict=True)
    ]
    result = np.zeros((len(x), *grid, stage["features"]), np.float32)
    leaving: dict[Tile, dict[str, Array]] = {}  # the final faces of each tile
    for tiles in _batches(edges_of_x, direction, rng):
        regions = [[slice(*edges[d][k]) for d, k in enumerate(tile)] for tile in tiles]
        extents = [part.stop - part.start for part in regions[0]]
        of_x = [[slice(*edges_of_x[d][k]) for d, k in enumerate(tile)] for tile in tiles]
        feeds = {"x": np.concatenate([x[(slice(None), *region)] for region in of_x])}
        for d, sign in enumerate(direction):
            zeros = np.zeros((len(x), *extents[:d], *extents[d + 1 :], stage["units"]), np.float32)
            before = [(*tile[:d], tile[d] - sign, *tile[d + 1 :]) for tile in tiles]
            for name in (f"h{d}", f"c{d}"):
                feeds[name] = np.concatenate(
                    [leaving[tile][f"{name}_n"] if tile in leaving else zeros for tile in before]
                )
        outputs = {name: np.split(value, len(tiles)) for name, value in run(sweep["file"], feeds).items()}
        for k, (tile, region) in enumerate(zip(tiles, regions, strict=True)):
            result[(slice(None), *region)] = outputs["part"][k]
            leaving[tile] = {name: parts[k] for name, parts in outputs.items()}
    return result


def _batches(edges: Edges, direction: Sequence[int], rng: np.random.Generator) -> Iterator[list[Tile]]:
    """The tiles in an order in which a direction may sweep them; those of one batch have equal extents."""
    counts = [len(tiles) for tiles in edges]
    diagonals: dict[tuple[int, ...], list[Tile]] = {}
    for steps in product(*map(range, counts)):  # from the corner that the direction starts at
        tile = tuple(
            k if sign > 0 else count - 1 - k
            for k, count, sign in zip(steps, counts, direction, strict=True)
        )
        extents = [edges[d][k][1] - edges[d][k][0] for d, k in enumerate(tile)]
        diagonals.setdefault((sum(steps), *extents), []).append(tile)
    for _, tiles in sorted(diagonals.items()):
        batch = int(rng.integers(1, MAX_BATCH + 1))
        for start in range(0, len(tiles), batch):
            yield tiles[start : start + batch]
