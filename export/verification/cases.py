"""The inputs that `verify_model` compares all runtimes on."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

import numpy as np

from mdlstm_tk._util.sizes import format_size
from mdlstm_tk.errors import InputError
from mdlstm_tk.export.tensor_spec import TensorSpec
from mdlstm_tk.export.verification.inputs import odd_grids, random_inputs, task_inputs
from mdlstm_tk.export.verification.parity import Array
from mdlstm_tk.runtime import Metadata
from mdlstm_tk.runtime.io.readers import read_input
from mdlstm_tk.runtime.shapes import Shapes

Grid = tuple[int, ...]
UserInputs = Mapping[str, Any] | Sequence[str | Path]
MAX_POSITIONS = 2**14  # of a grid that is chosen here; the reference takes seconds for so many


@dataclass(frozen=True)
class Case:
    """One input that all runtimes are compared on.

    Attributes:
        name: identifies the case, for example "8x8, random × 3, seed 0".
        group: the cases that are summarised together: those of one grid, or, where all have the same
            grid, those of one kind of input.
        x: (N, *grid, C), or (N, C, *grid).
        further: the inputs after x and `sizes`, by name.
    """

    name: str
    group: str
    x: Array
    further: dict[str, Array]


def random_cases(
    metadata: Metadata, inputs: Sequence[TensorSpec], default_grid: Grid, seeds: Sequence[int]
) -> Iterator[Case]:
    """Random inputs and samples of the task, on the model's grid and on the odd grids that it takes.

    Args:
        metadata: of the model.
        inputs: the inputs that the file declares.
        default_grid: the grid for a model that takes any.
        seeds: the random seeds.
    """
    multiple_of = metadata.multiple_of or (1,) * metadata.ndim
    base = metadata.grid or tuple(
        -(-extent // m) * m for extent, m in zip(default_grid, multiple_of, strict=True)
    )
    grids = [base]
    if metadata.grid is None or "sizes" in metadata.inputs:
        limit = metadata.grid or tuple((max(base) + 8) * m for m in multiple_of)
        for odd_grid in odd_grids(metadata.ndim):
            grid = tuple(extent * m for extent, m in zip(odd_grid, multiple_of, strict=True))
            fits = all(extent <= maximum for extent, maximum in zip(grid, limit, strict=True))
            if fits and prod(grid) <= MAX_POSITIONS:
                grids.append(grid)
    for grid in dict.fromkeys(grids):
        for seed in seeds:
            random = random_inputs(grid, metadata.channels, seed, metadata.channels_last)
            for name, x in (random | task_inputs(metadata.task, grid, seed)).items():
                size = format_size(grid)
                group = size if len(grids) > 1 else name
                yield Case(f"{size}, {name}, seed {seed}", group, x, _random_inputs(inputs, len(x), seed))


def user_cases(metadata: Metadata, declared: Sequence[TensorSpec], inputs: UserInputs) -> Iterator[Case]:
    """The user's own arrays.

    Args:
        metadata: of the model.
        declared: the inputs that the file declares.
        inputs: arrays by name, or files. An array is an x, with or without batch and channel axes. For a
            model with further inputs it is a mapping, or a `.npz` file, from the names of inputs to arrays.

    Raises:
        InputError: the model does not take an array, or a file cannot be read, or two arrays have one name.
    """
    dtypes = {tensor.name: np.dtype(tensor.dtype) for tensor in declared}
    shapes, further_names = Shapes(metadata), set(metadata.inputs[1:]) - {"sizes"}
    seen: set[str] = set()
    for name, value in _named_inputs(metadata, inputs):
        if name in seen:
            raise InputError(f"two inputs are called {name}; give each of them once, under another name")
        seen.add(name)
        arrays = dict(value) if isinstance(value, Mapping) else {metadata.inputs[0]: value}
        x = arrays.pop(metadata.inputs[0], None)
        if x is None or set(arrays) != further_names:
            raise InputError(
                f"{name} must hold the inputs {', '.join([metadata.inputs[0], *sorted(further_names)])}, "
                f"got {', '.join(map(str, value)) if isinstance(value, Mapping) else 'one array'}"
            )
        batch = shapes.prepare(np.asarray(x), name)
        further = shapes.prepare_extra_inputs(arrays, batch)
        # arrays that were read from a file are float32, whatever they were in it
        further = {key: _converted(array, dtypes[key], f"{name}: {key}") for key, array in further.items()}
        yield Case(name, name, batch.samples, further)


def _converted(array: Array, dtype: np.dtype[Any], label: str) -> Array:
    if dtype.kind == "i" and (array != np.round(array)).any():
        raise InputError(f"{label} must hold whole numbers; the network takes {dtype} there")
    return array.astype(dtype)


def _named_inputs(metadata: Metadata, inputs: UserInputs) -> Iterator[tuple[str, Any]]:
    """The value of each case, by its name."""
    if isinstance(inputs, Mapping):
        yield from inputs.items()
        return
    for path in inputs:
        arrays = read_input(str(path)).arrays_for(metadata)
        if set(arrays) == set(metadata.inputs) - {"sizes"}:
            yield str(path), arrays
        else:
            for name, array in arrays.items():
                yield str(path) if name is None else f"{path}: {name}", array


def _random_inputs(inputs: Sequence[TensorSpec], batch: int, seed: int) -> dict[str, Array]:
    """Values for the inputs after x and `sizes`: normal floats, and integers 0 and 1, which every table of
    embeddings has."""
    rng = np.random.default_rng(seed)
    values: dict[str, Array] = {}
    for tensor in inputs[1:]:
        if tensor.name != "sizes":
            shape = (batch, *(extent or 1 for extent in tensor.shape[1:]))
            is_float = np.dtype(tensor.dtype).kind == "f"
            value = rng.standard_normal(shape) if is_float else rng.integers(0, 2, shape)
            values[tensor.name] = value.astype(tensor.dtype)
    return values
