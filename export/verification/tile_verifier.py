"""The check of a tiles export: random grids, cut into random tiles, against the network's own forward.

The tiles are run one anti-diagonal after another by the few lines below, which share nothing with
`mdlstm_tk.runtime.tiles`, so that the two can be held against each other.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import pairwise, product
from math import prod

import numpy as np

from mdlstm_tk._util.sizes import format_size
from mdlstm_tk.errors import ParityError
from mdlstm_tk.export.spec import MAX_POSITIONS, ExportSpec
from mdlstm_tk.export.verification.parity import Array, compare, feature_scale, float64_reference
from mdlstm_tk.runtime.tiles.archive import Archive, Stage, Sweep
from mdlstm_tk.runtime.tiles.session import TiledSession

Tile = tuple[int, ...]
Edges = Sequence[Sequence[tuple[int, int]]]  # for each axis, where each tile begins and ends
Run = Callable[[str, Mapping[str, Array]], Mapping[str, Array]]  # runs a graph of an archive by its name
MAX_BATCH = 4  # tiles
TILINGS = 2  # of each grid
GRIDS = 2  # random ones, besides those that every export for any grid is verified on
MAX_WINDOWS = 9  # of a random grid, along each axis


def verify_tiles(session: TiledSession, spec: ExportSpec, atol: float) -> float:
    """Compare an archive with the network that it comes from.

    Args:
        session: the archive.
        spec: the network.
        atol: allowed absolute error in units of the largest output, at least 1.

    Returns:
        The largest absolute error.

    Raises:
        MDLSTMError: a graph returns something of another shape.
        ParityError: the two disagree.
    """
    name, archive = type(spec.module).__name__, session.archive
    run, rng = graphs_of(session), np.random.default_rng(0)
    exact = float64_reference(spec.module)
    computed: list[tuple[str, Array]] = []
    expected = []
    for grid in [*(grid for grid, _ in spec.shapes), *_random_grids(archive, rng)]:
        x = rng.standard_normal((2, *grid, spec.channels)).astype(np.float32)
        y, size = exact(x), format_size(grid)
        results = [run_in_tiles(archive, run, x, rng) for _ in range(TILINGS)]
        for result in [*results, session(x, small_tile(archive))]:
            computed.append((size, result))
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


def small_tile(archive: Archive) -> tuple[int, ...]:
    """The extents of a tile of two windows along each axis, so that small grids have several tiles."""
    return tuple(2 * extent for extent in archive.total_window)


def graphs_of(session: TiledSession) -> Run:
    """Runs the graphs that a session has loaded."""
    return lambda name, feeds: session.graphs.run(feeds, name)


def _random_grids(archive: Archive, rng: np.random.Generator) -> Iterator[tuple[int, ...]]:
    for _ in range(GRIDS):
        grid = tuple(int(rng.integers(1, MAX_WINDOWS * size + 1)) for size in archive.total_window)
        if prod(grid) <= MAX_POSITIONS:
            yield grid


def run_in_tiles(archive: Archive, run: Run, x: Array, rng: np.random.Generator) -> Array:
    """The output of a network for x (N, *grid, C), computed in random tiles.

    Args:
        archive: the network.
        run: runs its graphs.
        x: the input, in the precision of the graphs.
        rng: chooses the tiles of each sweep, and how many run in one batch.
    """
    ndim, stored = x.ndim - 2, x
    for stage in archive.stages:
        grid = [-(-extent // w) for extent, w in zip(stored.shape[1:-1], stage.window, strict=True)]
        parts = [
            _run_sweep(stage, sweep, run, stored, [_random_edges(extent, rng) for extent in grid], rng)
            for sweep in stage.sweeps
        ]
        stored = sum(parts[1:], parts[0]) if stage.added else np.concatenate(parts, axis=-1)
    pool = tuple(1 + axis for axis in archive.pool)
    if pool:
        stored = stored.mean(axis=pool, keepdims=True, dtype=np.float64).astype(x.dtype)
    y = stored if archive.head is None else run(archive.head, {"x": stored})["y"]
    if prod(archive.upsample) > 1:
        y = y[tuple(slice(extent) for extent in x.shape[: 1 + ndim])]
    return y.squeeze(pool)


def _random_edges(extent: int, rng: np.random.Generator) -> list[tuple[int, int]]:
    cuts = rng.choice(np.arange(1, extent), size=rng.integers(0, min(extent, 4)), replace=False)
    return list(pairwise([0, *sorted(cuts.tolist()), extent]))


def _run_sweep(
    stage: Stage,
    sweep: Sweep,
    run: Run,
    x: Array,
    edges: Edges,
    rng: np.random.Generator,
) -> Array:
    """The share of one direction in the output of a stage."""
    grid, direction = [tiles[-1][1] for tiles in edges], sweep.direction
    edges_of_x = [
        [(start * size, min(stop * size, extent)) for start, stop in tiles]
        for tiles, size, extent in zip(edges, stage.window, x.shape[1:-1], strict=True)
    ]
    result = np.zeros((len(x), *grid, stage.features), x.dtype)
    leaving: dict[Tile, dict[str, Array]] = {}  # the final faces of each tile
    for tiles in _batches(edges_of_x, direction, rng):
        regions = [[slice(*edges[d][k]) for d, k in enumerate(tile)] for tile in tiles]
        extents = [part.stop - part.start for part in regions[0]]
        of_x = [[slice(*edges_of_x[d][k]) for d, k in enumerate(tile)] for tile in tiles]
        feeds = {"x": np.concatenate([x[(slice(None), *region)] for region in of_x])}
        for d, sign in enumerate(direction):
            zeros = np.zeros((len(x), *extents[:d], *extents[d + 1 :], stage.units), x.dtype)
            before = [(*tile[:d], tile[d] - sign, *tile[d + 1 :]) for tile in tiles]
            for name in (f"{state}{d}" for state in stage.states):
                feeds[name] = np.concatenate(
                    [leaving[tile][f"{name}_n"] if tile in leaving else zeros for tile in before]
                )
        outputs = {name: np.split(value, len(tiles)) for name, value in run(sweep.file, feeds).items()}
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
