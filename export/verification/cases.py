"""The inputs to compare a model and its network on: random ones, and the user's own."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from mdlstm_tk._util.sizes import format_size
from mdlstm_tk.errors import InputError
from mdlstm_tk.io import Array
from mdlstm_tk.io.metadata import Extents as Grid
from mdlstm_tk.io.metadata import Metadata, are_bounds
from mdlstm_tk.runtime.inputs import read_feeds
from mdlstm_tk.runtime.session import Session
from mdlstm_tk.runtime.shapes import prepare
from mdlstm_tk.runtime.tiles.session import TiledSession

Range = tuple[float, float]
ExampleRange = Range | Callable[[tuple[int, ...], torch.Generator], Tensor | Array]
UserInputs = Mapping[str, Any] | Sequence[str | Path]
SEEDS = 2  # of an export, and of a verification unless it is told otherwise
MAX_POSITIONS = 2**14  # of a grid that is chosen here; the reference takes seconds for so many


@dataclass(frozen=True)
class Case:
    """One input that all runtimes are compared on.

    Attributes:
        name: identifies the case, for example "8x8, random × 3, seed 0".
        group: the cases that are summarised together: those of one grid, or, where all have the same
            grid, those of one kind of input.
        inputs: all inputs but `sizes`, by name; x comes first.
    """

    name: str
    group: str
    inputs: dict[str, Array]


@dataclass(frozen=True)
class RandomValues:
    """Makes random values of a shape.

    Attributes:
        range: the lowest and the highest value; None: standard normal numbers. Two integers: integers.
        function: makes the values in place of `range`, given a shape and a `torch.Generator`.
        dtype: of the values.
    """

    range: Range | None = None
    function: Callable[[tuple[int, ...], torch.Generator], Tensor | Array] | None = None
    dtype: type = np.float32

    def __call__(self, shape: tuple[int, ...], rng: np.random.Generator) -> Array:
        if self.function is not None:
            generator = torch.Generator().manual_seed(int(rng.integers(2**31)))
            values = np.asanyarray(self.function(shape, generator))
            if values.dtype.kind not in "buif":
                raise InputError(f"example_range returns {values.dtype}, expected real numbers")
            if values.shape != shape:
                raise InputError(f"example_range returned shape {values.shape}, expected {shape}")
        elif self.range is None:
            values = rng.standard_normal(shape)
        elif all(isinstance(bound, int) for bound in self.range):
            low, high = map(int, self.range)
            values = rng.integers(low, high + 1, shape)
        else:
            values = rng.uniform(*self.range, shape)
        return values.astype(self.dtype)


def sampler(
    name: str, example_range: ExampleRange | None, example: Tensor | None, network: nn.Module | None = None
) -> RandomValues:
    """The random values for an input.

    Args:
        name: the input.
        example_range: (low, high), or a function, as for `export_onnx`. None: the range of the example. If
            all its values are equal, or there is none, the values are standard normal, and integers the
            indices of the network's first table of embeddings; an input after x keeps its only value,
            unless that is 0.
        example: an example of the input, or None.
        network: the network, or None.

    Raises:
        InputError: `example_range` is neither a range of finite numbers nor a function.
    """
    is_integer = example is not None and not example.is_floating_point()
    dtype = np.int64 if is_integer and name != "x" else np.float32
    if callable(example_range):
        return RandomValues(None, example_range, dtype)
    if example_range is None:
        if example is None or not example.numel():
            return RandomValues(dtype=dtype)
        low, high = example.min().item(), example.max().item()
        if low == high != 0 and name != "x":
            return RandomValues((low, high), dtype=dtype)
        if low == high and is_integer:
            tables = [m for m in network.modules() if isinstance(m, nn.Embedding)] if network else []
            low, high = (0, tables[0].num_embeddings - 1) if tables else (0, max(1, int(high)))
        elif not np.isfinite([low, high]).all() or low == high:
            return RandomValues(dtype=dtype)
        return RandomValues((low, high), dtype=dtype)
    try:
        low, high = map(int if is_integer else float, example_range)
        if not are_bounds((low, high)):
            raise ValueError
    except (TypeError, ValueError, OverflowError):
        raise InputError(
            "example_range must be (low, high) with low <= high, which fit the type of the input, or a "
            f"function of a shape and a generator, got {example_range!r}"
        ) from None
    return RandomValues((low, high), dtype=dtype)


def odd_grids(ndim: int) -> list[Grid]:
    """Grids that tend to reveal errors: elongated along each axis, a single position, a single row."""
    elongated = (5, 8, 3, 2, *(1,) * ndim)[:ndim]
    row = (1,) * (ndim - 1) + (7,)
    return sorted({elongated, elongated[::-1], (1,) * ndim, row, row[::-1]})


def draw_inputs(
    draws: Mapping[str, RandomValues], shapes: Mapping[str, tuple[int, ...]], batch: int, seed: int
) -> dict[str, Array]:
    """Random inputs of these shapes, without the batch, in their order."""
    rng = np.random.default_rng(seed)
    return {name: draws[name]((batch, *shape), rng) for name, shape in shapes.items()}


def random_cases(
    inputs: Callable[[Grid, int, int], dict[str, Array]],
    grids: Sequence[Grid],
    seeds: Sequence[int] = range(SEEDS),
) -> Iterator[Case]:
    """Random inputs in batches of 1 and 3: the cases of an export and, with the same seeds, of a later
    verification.

    Args:
        inputs: draws all inputs but `sizes` for a grid, a batch and a seed.
        grids: the grids.
        seeds: the seeds.
    """
    for grid in grids:
        size = format_size(grid)
        for seed in seeds:
            drawn = inputs(grid, 4, seed)
            for name, part in (("random × 1", slice(1)), ("random × 3", slice(1, 4))):
                arrays = {key: value[part] for key, value in drawn.items()}
                yield Case(f"{size}, {name}, seed {seed}", size if len(grids) > 1 else name, arrays)


def inputs_of_file(
    metadata: Metadata, types: Mapping[str, TensorType], draw: RandomValues
) -> Callable[[Grid, int, int], dict[str, Array]]:
    """A function that draws the inputs of a file for a grid, a batch and a seed, as its export did.

    `types` are those of the inputs of the file, and `draw` makes x. Inputs after x without a range are
    normal, and integers 0 and 1, which every table of embeddings has.
    """
    draws, further = {"x": draw}, {k: v for k, v in types.items() if k not in ("x", "sizes")}
    for name, (dtype, _) in further.items():
        default = None if np.dtype(dtype).kind == "f" else (0, 1)
        draws[name] = RandomValues(metadata.input_ranges.get(name, default), dtype=np.dtype(dtype).type)

    def inputs(grid: Grid, batch: int, seed: int) -> dict[str, Array]:
        free = [extent for extent, fixed in zip(grid, metadata.extents, strict=True) if fixed is None]
        shapes = {"x": metadata.shape_of(grid)}
        for name, (_, shape) in further.items():
            extents = iter(
                free
            )  # of an input with the grid of x, its extents are free where those of x are
            shapes[name] = tuple(next(extents, 1) if extent is None else extent for extent in shape[1:])
        return draw_inputs(draws, shapes, batch, seed)

    return inputs


class TensorType(NamedTuple):
    """The type of an input of a graph: NumPy's name of its dtype, and its extents, None where free."""

    dtype: str
    shape: tuple[int | None, ...]


def tensor_types(session: Session) -> dict[str, TensorType]:
    """The types of the inputs of a session, by their names."""
    shapes = {each.name: each.shape for each in session.graph.session.get_inputs()}
    return {
        name: TensorType(dtype, tuple(e if isinstance(e, int) else None for e in shapes[name]))
        for name, dtype in session.graph.dtypes.items()
    }


def prepared_x(x: Any, name: str, metadata: Metadata) -> Array:
    """An x of the user with the axes that a file takes; errors call it by its name.

    Raises:
        InputError: the file does not take it.
    """
    try:
        inputs = ("x", "sizes") if metadata.takes_sizes else ("x",)
        without = replace(metadata, inputs=inputs, x_range=None, unit_range=False)
        return prepare(x, without, {"x": "float32"}).feeds["x"]
    except InputError as error:
        raise InputError(f"{name}: {error}") from None


def user_cases(session: Session | TiledSession, inputs: UserInputs) -> list[Case]:
    """The user's own arrays by name, or those in files, as `verify_model` takes them. Samples with `sizes`
    are cases of their own, without their padding.

    Raises:
        InputError: there is no array, or the model does not take one, or a file cannot be read, or two
            arrays have one name.
    """
    metadata = session.metadata
    names, cases = [name for name in metadata.inputs if name != "sizes"], dict[str, Case]()
    dtypes = session.graph.dtypes if isinstance(session, Session) else {"x": "float32"}
    of_user = inputs.items() if isinstance(inputs, Mapping) else _file_inputs(metadata, inputs)
    for name, value in of_user:
        arrays = dict(value) if isinstance(value, Mapping) else {"x": value}
        sizes = arrays.pop("sizes", None)
        if set(arrays) != set(names):
            raise InputError(
                f"{name} must hold the inputs {', '.join(names)}, "
                f"got {', '.join(map(str, value)) if isinstance(value, Mapping) else 'one array'}"
            )
        try:
            whole = prepare(arrays.pop("x"), metadata, dtypes, sizes, arrays).feeds
        except InputError as error:
            raise InputError(f"{name}: {error}") from None
        parts, valid = {name: whole}, whole.pop("sizes", None)
        if valid is not None:
            parts = {f"{name}, sample {k}": _sample(whole, k, metadata, e) for k, e in enumerate(valid)}
        for label, part in parts.items():
            if label in cases:
                raise InputError(
                    f"two inputs are called {label}; give each of them once, under another name"
                )
            cases[label] = Case(label, name, part)
    if not cases:
        raise InputError("inputs must hold at least one array or file, got none")
    return list(cases.values())


def _sample(inputs: Mapping[str, Array], k: int, metadata: Metadata, extents: Array) -> dict[str, Array]:
    """Sample k of a batch without its padding."""
    sample = {name: array[k : k + 1] for name, array in inputs.items()}
    return sample | {"x": sample["x"][0][metadata.region(extents.tolist())][np.newaxis]}


def _file_inputs(metadata: Metadata, paths: Sequence[str | Path]) -> Iterator[tuple[str, Any]]:
    """The arrays of files: all inputs of the model in one file, or each x by itself."""
    for path in paths:
        for name, feed in read_feeds(str(path), metadata).items():
            label = str(path) if name is None else f"{path}: {name}"
            yield label, feed.arguments if len(feed.arguments) > 1 else feed.arguments["x"]
