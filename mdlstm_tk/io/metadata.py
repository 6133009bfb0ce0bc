"""What an exported model says about itself: JSON values in ONNX `metadata_props`, with keys `mdlstm.*`."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from math import prod
from typing import Any, Literal

from mdlstm_tk.errors import InputError
from mdlstm_tk.io import Array

Form = Literal["unrolled", "scan", "tiles"]
Dtype = Literal["float32", "float16"]
Precision = Literal["float64", "float32", "mixed"]
Extents = tuple[int, ...]
FreeExtents = tuple[int | None, ...]
Bounds = tuple[int | float, int | float]

PREFIX = "mdlstm."
SCHEMA = 2
MAX_POSITIONS = 2**31  # of a grid that a file is verified on


@dataclass(frozen=True, kw_only=True)
class Metadata:
    """The metadata of an exported model.

    Attributes:
        version: version of mdlstm-tk that exported the model.
        form: "unrolled" (the sweep written out for one grid), "scan" (as a loop) or "tiles" (a graph for
            each sweep, with faces as inputs and outputs).
        layout: axes of x, for example "N H W C" or "N C H W".
        channels, outputs: features of x and of y.
        grid: extents of the grid that the model takes, None for a free one; None: all are free. Smaller
            grids fit, too, if `inputs` has "sizes".
        multiple_of, min_grid: what extents must be multiples of, and at least; None: any.
        inputs: names: x, then "sizes" (N, D) if the model takes padded samples, then further ones.
        output_names: the first one is y, which the other fields describe.
        window, further_windows: extents of the part of x that a position of y, and of each further output,
            covers. The grid of y is ⌈grid / window⌉. None: the output has no grid, but shape (N, outputs)
            or another.
        columns_per_step: columns of x under each of the T steps of y (N, T, outputs); None: unknown, or no
            steps.
        dtype: precision of the computation, "int8" in files of 1.0 alone. x and y are float32 in any case.
        integer: x holds whole numbers, such as tokens.
        channel_axis: the network takes x with the axis C, which the file has in any case.
        kind: kind of the task, such as "classify"; None: numbers.
        classes: names of the outputs, if they are classes.
        preprocessing: how images become x, see `Preprocessing.from_json`; None: the network was trained on
            arrays.
        unit_range: False if x of training lay outside of [0, 1], to which images of 8 or 16 bits are
            scaled.
        x_range: the lowest and the highest value of x in training, if they are known.
        model, task, user_data: names of the network and of the task, if the model is of a run; and whether
            the task is the name of the user's own data.
        mask_values, mask_palette: of a segmenter, the value of each class in masks, and red, green and blue
            of each.
        example_range, input_ranges: the lowest and the highest value of x, and of further inputs by name,
            in random inputs of a verification. None: they are standard normal. Two whole numbers: whole
            numbers.
        grids: those that the export was verified on.
        parity: {"atol", "rtol", "max_abs"}: the tolerance that the model met, and its largest error.
        reference: precision of the network that the file was compared with.
        checkpoint_sha256: checksum of the checkpoint, if the model is of a run.
        part: of a graph of a tiles export, which one it is, such as "stage-0/sweep-1" or "head".
        more: all other properties: those of a kind, such as "threshold".
    """

    version: str
    form: Form
    layout: str
    channels: int
    outputs: int
    grid: FreeExtents | None = None
    multiple_of: Extents | None = None
    min_grid: Extents | None = None
    inputs: tuple[str, ...] = ("x",)
    output_names: tuple[str, ...] = ("y",)
    window: Extents | None = (1, 1)
    further_windows: tuple[Extents | None, ...] = ()
    columns_per_step: int | None = None
    dtype: str = "float32"
    integer: bool = False
    channel_axis: bool = True
    kind: str | None = None
    classes: tuple[str, ...] | None = None
    preprocessing: dict[str, Any] | None = None
    unit_range: bool = True
    x_range: Bounds | None = None
    model: str | None = None
    task: str | None = None
    user_data: bool = False
    mask_values: tuple[int, ...] | None = None
    mask_palette: tuple[int, ...] | None = None
    example_range: Bounds | None = None
    input_ranges: dict[str, Bounds] = field(default_factory=dict)
    grids: tuple[Extents, ...] = ()
    parity: dict[str, float] = field(default_factory=dict)
    reference: Precision = "float64"
    checkpoint_sha256: str | None = None
    part: str | None = None
    more: dict[str, Any] = field(default_factory=dict)

    @property
    def ndim(self) -> int:
        """D, the number of grid axes."""
        return len(self.layout.split()) - 2

    @property
    def channels_last(self) -> bool:
        return self.layout.endswith("C")

    @property
    def extents(self) -> FreeExtents:
        """The extents of the grid, None where one is free."""
        return self.grid or (None,) * self.ndim

    @property
    def takes_sizes(self) -> bool:
        return "sizes" in self.inputs

    @property
    def windows(self) -> dict[str, Extents | None]:
        """The window of each output, by its name."""
        return dict(zip(self.output_names, (self.window, *self.further_windows), strict=True))

    def grid_like(self, grid: Sequence[int]) -> Extents:
        """A grid that the model takes: its fixed extents, and those of `grid` along free axes."""
        return tuple(e if own is None else own for e, own in zip(grid, self.extents, strict=True))

    def shape_of(self, grid: Sequence[int]) -> Extents:
        """The shape of one sample of x: (*grid, C) or (C, *grid)."""
        return (*grid, self.channels) if self.channels_last else (self.channels, *grid)

    def grid_of(self, shape: Sequence[int]) -> Extents:
        """The extents of the grid in a shape (N, *grid, C) or (N, C, *grid)."""
        return tuple(shape[1:-1] if self.channels_last else shape[2:])

    def region(self, extents: Sequence[int]) -> tuple[Any, ...]:
        """The index of the first positions along each axis of the grid, in one sample."""
        slices = tuple(map(slice, extents))
        return (*slices, ...) if self.channels_last else (..., *slices)

    def class_axis(self, y: Array) -> int:
        """The axis of an output (N, …) that holds its features: the last, unless it has a grid that follows
        them."""
        return 1 if not self.channels_last and y.ndim == self.ndim + 2 else -1

    def to_props(self) -> dict[str, str]:
        """The metadata as `metadata_props` store them."""
        values = asdict(self)
        values = {"schema": SCHEMA, **values.pop("more"), **values}
        return {PREFIX + name: json.dumps(value) for name, value in values.items()}

    @classmethod
    def from_props(cls, props: Mapping[str, str], label: str) -> Metadata:
        """Parse what `to_props` returned, which may come from a stranger; `label` names the file in errors.

        Raises:
            InputError: the file was not exported by this package, or a field is missing or wrong.
        """
        texts = {key.removeprefix(PREFIX): text for key, text in props.items() if key.startswith(PREFIX)}
        if "schema" not in texts:
            raise InputError(f"{label} was not exported by mdlstm-tk; make a model with: mdlstm export")
        try:
            values = {name: _tuples(json.loads(text)) for name, text in texts.items()}
            if values.pop("schema") != SCHEMA:
                raise ValueError(f"schema {texts['schema']!a:.20}, this version reads {SCHEMA}")
            known = {each.name for each in fields(cls)} - {"more"}
            more = {name: values.pop(name) for name in values.keys() - known}
            metadata = cls(**values, more=more)
            for name, holds in _rules(metadata):
                if not holds:
                    raise ValueError(f"{name} is {texts.get(name, 'missing')!a:.60}")
        except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
            raise InputError(f"{label} has wrong metadata ({error!s:.120}); export it again") from None
        return metadata


def layout_of(ndim: int, channels_last: bool) -> str:
    """The axes of x as the metadata name them, such as "N H W C" or "N C H W"."""
    axes = {1: "T", 2: "H W", 3: "D H W"}.get(ndim, " ".join(f"E{d + 1}" for d in range(ndim)))
    return f"N {axes} C" if channels_last else f"N C {axes}"


def _tuples(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _tuples(each) for key, each in value.items()}
    return tuple(map(_tuples, value)) if isinstance(value, list) else value


def _rules(m: Metadata) -> Iterator[tuple[str, bool]]:
    """Fields, and whether they have a value that the runtime and the verification can rely on."""
    names = [each for each in (m.kind, m.model, m.task) if each is not None]
    yield "version", all(isinstance(text, str) for text in (m.version, m.form, m.layout, m.dtype, *names))
    yield "form", m.form in ("unrolled", "scan", "tiles")
    axes, ndim = m.layout.split(), m.ndim
    yield "layout", len(axes) > 2 and axes[0] == "N" and "C" in (axes[1], axes[-1])
    for name in ("channels", "outputs"):
        yield name, _are_extents((getattr(m, name),), 1)
    for name in ("grid", "multiple_of", "min_grid", "window"):
        yield name, getattr(m, name) is None or _are_extents(getattr(m, name), ndim, is_free=name == "grid")
    limits = zip(m.extents, m.multiple_of or (1,) * ndim, m.min_grid or (1,) * ndim, strict=True)
    yield "grid", all(e is None or (e % multiple == 0 and e >= least) for e, multiple, least in limits)
    yield "inputs", _are_names(m.inputs) and m.inputs[0] == "x"
    yield "output_names", _are_names(m.output_names)
    are_windows = all(each is None or _are_extents(each, ndim) for each in m.further_windows)
    yield "further_windows", are_windows and len(m.further_windows) == len(m.output_names) - 1
    yield "columns_per_step", m.columns_per_step is None or _are_extents((m.columns_per_step,), 1)
    yield "classes", m.classes is None or _are_names(m.classes)
    channels = None
    if m.preprocessing is not None:
        from mdlstm_tk.io.images import Preprocessing  # imported late: many models read no images

        channels = Preprocessing.from_json(m.preprocessing).channels
    yield "preprocessing", channels in (None, m.channels) and (channels is None or ndim == 2)
    values, palette = m.mask_values, m.mask_palette or ()
    yield "mask_values", values is None or len(values) == m.outputs
    yield "mask_values", all(type(v) is int and -(2**63) <= v < 2**63 for v in values or ())
    yield "mask_palette", len(palette) in (0, 3 * m.outputs) and {*palette} <= {*range(256)}
    ranges = [each for each in (m.x_range, m.example_range, *m.input_ranges.values()) if each is not None]
    yield "example_range", all(are_bounds(each) for each in ranges)
    yield "grids", all(_are_extents(grid, ndim) and prod(grid) < MAX_POSITIONS for grid in m.grids)
    yield "parity", all(0 <= error < float("inf") for error in m.parity.values())


def are_bounds(bounds: Any) -> bool:
    """True for a lowest and a highest number."""
    low, high = bounds
    return all(type(each) in (int, float) and abs(each) < 3.4e38 for each in bounds) and low <= high


def _are_extents(value: Any, count: int, is_free: bool = False) -> bool:
    return len(value) == count and all((is_free and e is None) or (type(e) is int and e > 0) for e in value)


def _are_names(value: Any) -> bool:
    is_tuple = isinstance(value, tuple) and len({*value}) == len(value) > 0
    return is_tuple and all(isinstance(name, str) for name in value)
