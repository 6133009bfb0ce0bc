"""The metadata of exported models: JSON values in ONNX `metadata_props`, with keys `mdlstm.*`."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import KW_ONLY, MISSING, asdict, dataclass, field, fields
from math import inf, prod
from typing import Any, Literal, get_type_hints

from mdlstm_tk._util.checks import expected, fitting
from mdlstm_tk._util.text import counted
from mdlstm_tk.errors import InputError
from mdlstm_tk.kinds import kind_named
from mdlstm_tk.kinds.rooms import load
from mdlstm_tk.runtime.choices import Dtype, Form, Precision

PREFIX = "mdlstm."
SCHEMA = 2

Extents = tuple[int, ...]
Bounds = tuple[int | float, int | float]
FLOAT_MAX = (2 - 2**-23) * 2.0**127  # of float32
MAX_POSITIONS = 2**31  # of a grid that a file is verified on


@dataclass(frozen=True)
class Metadata:
    """The metadata of an exported model. A kind may add fields in a class of its own, which
    `Metadata(..., kind=...)` makes, too.

    Attributes:
        version: version of mdlstm-tk that exported the model.
        grid: extents of the grid that the model takes, None for one that is free; smaller grids fit, too,
            if `inputs` has "sizes". None: the model takes any grid.
        form: "unrolled" (the sweep written out for one grid), "scan" (the sweep as a loop) or "tiles" (a
            graph for each sweep, with faces as inputs and outputs, for grids in tiles).
        layout: axes of x, for example "N H W C".
        channels: number of features at each position of x.
        outputs: number of features of y, at each position if y has a grid.
        output_names: names of the outputs; the first one is y, which all other fields describe.
        further_windows: like `window`, for each output after the first.
        multiple_of: the numbers that the extents of a grid must be multiples of; None if all extents fit.
        min_grid: the smallest extents that the network takes; None if it takes an extent of 1, or of
            `multiple_of`, along every free axis.
        inputs: names of the inputs: x, then "sizes" (N, D) if the model takes padded samples, then extra
            inputs.
        window: extents of the part of x that one position of y covers. The grid of y is ⌈grid / window⌉,
            in the layout of x. None: y has no grid, but shape (N, outputs) or another.
        columns_per_step: columns of x that one of the T steps of y (N, T, outputs) covers, if steps count
            as columns; see `Kind.steps_are_columns`. None: the network does not say it.
        dtype: precision of the computation, "int8" in files of version 1.0 alone. x and outputs of floats
            are float32 in any case.
        model: name of the network, if the model was exported from a run.
        task: name of the task, if the model was exported from a run.
        user_data: the model was trained on the user's own data, and `task` is their name.
        kind: kind of the task, such as "grid", "classify" or "segment".
        classes: names of the outputs, if they are classes; see `Kind.name_count`.
        mask_values: of a segmenter, the value of each class in masks.
        mask_palette: of a segmenter, red, green and blue of each class in turn.
        preprocessing: how images are prepared, as `Preprocessing.from_json` takes it.
        unit_range: False if mean and deviation say that x of training lay outside of [0, 1], to which
            images of 8 or 16 bits are scaled.
        example_range: the lowest and the highest value of x in random inputs that a verification draws.
            None: they are standard normal. Two whole numbers: whole numbers.
        input_ranges: the same for the inputs after x, by their names.
        grids: the grids that the export was verified on, and that a verification draws inputs for.
        integer: x holds whole numbers, such as tokens.
        channel_axis: the network that was exported takes x with the axis C, which the file has in any case.
        checkpoint_sha256: checksum of the checkpoint, if the model was exported from a run.
        part: for a graph of a tiles export, which one it is, such as "stage-0/sweep-1" or "head".
        parity: {"atol", "rtol", "max_abs"}: the tolerance that the model met on export, and its largest
            error against the network.
        reference: precision of the network that the file was compared with: "float64"; "float32" if its
            forward makes tensors of float32; "mixed" if it converts x for layers of several precisions.
        schema: version of this set of fields.

    Raises:
        InputError: a field is none of the kind's, or the class that is named is that of another kind.
    """

    version: str
    grid: tuple[int | None, ...] | None
    form: Form
    layout: str
    channels: int
    outputs: int
    _: KW_ONLY
    inputs: tuple[str, ...] = ("x",)
    window: Extents | None = (1, 1)
    output_names: tuple[str, ...] = ("y",)
    further_windows: tuple[Extents | None, ...] = ()
    multiple_of: Extents | None = None
    columns_per_step: int | None = None
    min_grid: Extents | None = None
    dtype: Dtype | Literal["int8"] = "float32"
    model: str | None = None
    task: str | None = None
    user_data: bool = False
    kind: str | None = None
    classes: tuple[str, ...] | None = None
    mask_values: tuple[int, ...] | None = None
    mask_palette: tuple[int, ...] | None = None
    preprocessing: dict[str, Any] | None = None
    unit_range: bool = True
    example_range: Bounds | None = None
    input_ranges: dict[str, Bounds] = field(default_factory=dict)
    grids: tuple[Extents, ...] = ()
    integer: bool = False
    channel_axis: bool = True
    checkpoint_sha256: str | None = None
    part: str | None = None
    parity: dict[str, float] = field(default_factory=dict)
    reference: Precision = "float64"
    schema: int = SCHEMA

    def __new__(cls, *args: Any, kind: str | None = None, **values: Any) -> Metadata:
        if not (args or values):  # as copies and pickles call it, which fill the object themselves
            return object.__new__(cls)
        of_kind, name = _class_of(kind), f"kind {kind}" if kind else "no kind"
        if cls not in (Metadata, of_kind):
            raise InputError(
                f"metadata of {name} are {of_kind.__name__}, not {cls.__name__}; make new ones with the "
                f"fields of this kind: Metadata(..., kind={kind!r})"
            )
        if unknown := values.keys() - {entry.name for entry in fields(of_kind)}:
            raise InputError(f"metadata of {name} have no field '{min(unknown)}'; leave it out")
        return object.__new__(of_kind)

    @property
    def ndim(self) -> int:
        """D, the number of grid axes."""
        return len(self.layout.split()) - 2

    @property
    def required_inputs(self) -> set[str]:
        """The names of the inputs without `sizes`, which may be left out."""
        return set(self.inputs) - {"sizes"}

    @property
    def extents(self) -> tuple[int | None, ...]:
        """The extents of the grid, None where one is free."""
        return (None,) * self.ndim if self.grid is None else self.grid

    def grid_like(self, grid: Extents) -> Extents:
        """A grid that the model takes: its fixed extents, and the extents of `grid` along free axes.

        Raises:
            InputError: the grid has another number of axes.
        """
        if len(grid) != self.ndim:
            raise InputError(f"the model takes grids of {counted(self.ndim, 'axis', 'axes')}, got {grid}")
        return tuple(extent if e is None else e for e, extent in zip(self.extents, grid, strict=True))

    def has_batch_axis(self, axes: int) -> bool:
        """True if an array x of this many axes is a batch. A network that takes x without channels also
        gets batches without them."""
        return axes == self.ndim + 2 or (axes == self.ndim + 1 and not self.channel_axis)

    @property
    def windows(self) -> dict[str, Extents | None]:
        """The window of each output, by its name."""
        return dict(zip(self.output_names, (self.window, *self.further_windows), strict=True))

    @property
    def channels_last(self) -> bool:
        """True if the channels are the last axis of x and of y, rather than the second."""
        return self.layout.endswith("C")

    def check(self) -> None:
        """Check that a model with these metadata can be read again.

        Raises:
            InputError: a field is wrong; the message names it.
        """
        self.from_props(self.to_props(), "the export", "change it before you export")

    def to_props(self) -> dict[str, str]:
        """The metadata as `metadata_props` store it."""
        return {PREFIX + name: json.dumps(value) for name, value in asdict(self).items()}

    @classmethod
    def from_props(
        cls, props: Mapping[str, str], label: str, advice: str = "export the model again"
    ) -> Metadata:
        """Parse what `to_props` returned, and check its types. Error messages call the model `label`, and
        end with the advice.

        Raises:
            InputError: the model was not exported by mdlstm-tk, or by a newer version of it, or a field is
                missing or wrong; the message names it.
        """
        texts = {key.removeprefix(PREFIX): text for key, text in props.items() if key.startswith(PREFIX)}
        if "schema" not in texts:
            raise InputError(
                f"{label} was not exported by mdlstm-tk (it has no mdlstm.* metadata); "
                "make one with: mdlstm export"
            )
        if texts["schema"] != str(SCHEMA):
            raise InputError(
                f"the metadata of {label} have schema {texts['schema']!a:.60}, but this version reads "
                f"{SCHEMA}; install a newer mdlstm-tk, or export the model again"
            )

        def wrong(name: str, value: Any, rule: str) -> InputError:
            return InputError(
                f"the metadata field '{name}' of {label} is {value!a:.60}; expected {rule}; {advice}"
            )

        def parsed(name: str, annotation: Any) -> Any:
            value: Any = texts[name]
            try:
                value = json.loads(value)
                return fitting(value, annotation)
            except (TypeError, ValueError, RecursionError):
                raise wrong(name, value, expected(annotation)) from None

        kind = parsed("kind", str | None) if "kind" in texts else None
        of_kind, values = _class_of(kind), dict[str, Any]()
        annotations = get_type_hints(of_kind)
        for entry in fields(of_kind):
            name = entry.name
            if name in texts:
                values[name] = parsed(name, annotations[name])
            elif entry.default is MISSING and entry.default_factory is MISSING:
                raise InputError(f"the metadata of {label} lack '{name}'; {advice}")
        metadata = of_kind(**values)
        for name, holds, rule in _consistency(metadata):
            if not holds:
                raise wrong(name, getattr(metadata, name), rule)
        return metadata


def _class_of(kind: str | None) -> type[Metadata]:
    """The class of the metadata of a kind."""
    metadata: type[Metadata] = load(kind_named(kind).metadata_class)
    return metadata


def layout_of(ndim: int, channels_last: bool) -> str:
    """The axes of x as the metadata name them, such as "N H W C" or "N C H W"."""
    axis_names = {1: "T", 2: "H W", 3: "D H W"}
    axes = axis_names.get(ndim, " ".join(f"E{d + 1}" for d in range(ndim)))
    return f"N {axes} C" if channels_last else f"N C {axes}"


def _consistency(metadata: Metadata) -> Iterator[tuple[str, bool, str]]:
    """The rules between fields: a field, if the rule holds, and the value that was expected."""
    axes = metadata.layout.split()
    yield "layout", axes[:1] == ["N"] and "C" in (axes[1:2] + axes[-1:]) and len(axes) > 2, "like 'N H W C'"
    ndim, outputs, kind, classes = metadata.ndim, metadata.outputs, metadata.kind, metadata.classes
    yield "channels", metadata.channels > 0, "a positive integer"
    yield "outputs", outputs > 0, "a positive integer"
    expected_extents = f"{counted(ndim, 'positive extent')}, as the layout '{metadata.layout}' has them"
    for name in ("grid", "window", "multiple_of", "min_grid"):
        extents = getattr(metadata, name)
        yield name, extents is None or _are_extents(extents, ndim), expected_extents
    multiples, least = metadata.multiple_of or (1,) * ndim, metadata.min_grid or (1,) * ndim
    terms = zip(metadata.extents, multiples, least, strict=True)
    fixed = [(e, m, low) for e, m, low in terms if e is not None]
    yield "multiple_of", not any(e % m for e, m, _ in fixed), f"divisors of the grid {metadata.grid}"
    yield "min_grid", all(low <= e for e, _, low in fixed), f"at most the grid {metadata.grid}"
    columns = metadata.columns_per_step
    yield "columns_per_step", columns is None or columns > 0, "a positive integer"
    yield "inputs", metadata.inputs[:1] == ("x",) and _are_different(metadata.inputs), "'x', then others"
    yield "output_names", _are_different(metadata.output_names), "different names"
    further, count = metadata.further_windows, len(metadata.output_names) - 1
    yield (
        "further_windows",
        len(further) == count,
        f"{counted(count, 'window')}, one for each further output",
    )
    yield "further_windows", all(w is None or _are_extents(w, ndim) for w in further), expected_extents
    if names := kind_named(kind).name_count(outputs):
        expected = f"{counted(names, 'different name')}, for the outputs of a model of kind {kind}"
        is_valid = classes is not None and _are_different(classes) and len(classes) == names
        yield "classes", is_valid, expected
    yield from kind_named(kind).rules(metadata)
    one, several = metadata.example_range, metadata.input_ranges.values()
    for name, ranges in ("example_range", [one] if one else []), ("input_ranges", [*several]):
        yield name, all(map(are_bounds, ranges)), "the lowest and the highest value, which fit their type"
    yield "grids", all(_are_extents(grid, ndim) for grid in metadata.grids), expected_extents
    yield (
        "grids",
        all(prod(grid) < MAX_POSITIONS for grid in metadata.grids),
        f"fewer than {MAX_POSITIONS} positions",
    )
    errors = metadata.parity.values()
    yield "parity", all(0 <= error < inf for error in errors), "numbers of at least 0"
    values, palette = metadata.mask_values, metadata.mask_palette
    are_values = values is None or (len(values) == outputs and all(-(2**63) <= v < 2**63 for v in values))
    yield "mask_values", are_values, f"{counted(outputs, 'value')} of 64 bits, one for each class"
    is_palette = palette is None or (len(palette) == 3 * outputs and set(palette) <= set(range(256)))
    yield "mask_palette", is_palette, f"{3 * outputs} values from 0 to 255"
    if metadata.preprocessing is not None:
        from mdlstm_tk.runtime.preprocessing import Preprocessing  # imported late: few models take images

        try:
            channels = Preprocessing.from_json(metadata.preprocessing).channels
        except (ValueError, TypeError):
            channels = 0
        expected = f"images with {counted(metadata.channels, 'channel')}, as x has"
        yield "preprocessing", (ndim, channels) == (2, metadata.channels), expected


def are_bounds(bounds: tuple[float, ...]) -> bool:
    """True if these are the lowest and the highest of values that float32 holds, or of integers of 64
    bits."""
    are_integers = all(isinstance(bound, int) for bound in bounds)
    low, high = (-(2**63), 2**63 - 1) if are_integers else (-FLOAT_MAX, FLOAT_MAX)
    return len(bounds) == 2 and low <= bounds[0] <= bounds[1] <= high


def _are_extents(extents: tuple[int | None, ...], ndim: int) -> bool:
    return len(extents) == ndim and all(extent is None or extent > 0 for extent in extents)


def _are_different(names: tuple[str, ...]) -> bool:
    return bool(names) and len(set(names)) == len(names)
