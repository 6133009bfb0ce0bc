"""What the metadata of a model may hold: each field by itself, the fields together, and with the graph.

A model may come from a stranger, so nothing that uses its metadata has to expect a wrong type, a name that
forges output, a number without bound, or a grid of another rank than the graph's. The same rules hold when
a model is exported: what reading refuses is never written.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from math import prod
from typing import TYPE_CHECKING, Any, NamedTuple

from mdlstm_tk._util.text import is_plain_text
from mdlstm_tk.errors import InputError
from mdlstm_tk.runtime.preprocessing import Preprocessing

if TYPE_CHECKING:
    from mdlstm_tk.runtime.metadata import Metadata

KINDS = ("grid", "classify", "segment", "transcribe", "density")
FORMS = ("unrolled", "scan", "tiles")
DTYPES = ("float32", "float16", "int8")
PARITY_KEYS = ("atol", "rtol", "max_abs")

MAX_NDIM = 16
MAX_EXTENT = 2**31 - 1
MAX_FEATURES = 2**20  # channels or outputs at one position
MAX_DRAWN_EXTENT = 2**14
MAX_PIXELS = 2**28  # that an image is resized to
MAX_TENSORS = 64  # inputs or outputs
MAX_NAME = 1000  # characters of the name of a tensor or a class
MAX_TEXT = 10_000  # characters of any other text; the name of a network may be a path
MAX_BYTES = 2**22  # of all fields as JSON; an alphabet of 50,000 characters takes 0.5 MiB
SHOWN = 60  # characters of a wrong value in a message

_AXIS_NAMES = {1: "T", 2: "H W", 3: "D H W"}
_SHA256 = re.compile("[0-9a-f]{64}")


class TensorType(NamedTuple):
    """The type of an input or output of a graph.

    Attributes:
        dtype: NumPy's name of the element type.
        shape: extents, None where an extent is free; the first axis is the batch.
    """

    dtype: str
    shape: tuple[int | None, ...]


class Rule(NamedTuple):
    """What one field may hold: a test of its JSON value, and the same in words."""

    holds: Callable[[Any], bool]
    expected: str


def layout_of(ndim: int, channels_last: bool) -> str:
    """The axes of x as the metadata name them, such as "N H W C" or "N C H W"."""
    axes = _AXIS_NAMES.get(ndim, " ".join(f"E{d + 1}" for d in range(ndim)))
    return f"N {axes} C" if channels_last else f"N C {axes}"


LAYOUTS = {layout_of(ndim, last) for ndim in range(1, MAX_NDIM + 1) for last in (True, False)}


def _is_text(value: Any, longest: int = MAX_TEXT) -> bool:
    return isinstance(value, str) and 0 < len(value) <= longest and is_plain_text(value)


def _is_integer(value: Any, least: int, most: int) -> bool:
    return type(value) is int and least <= value <= most


def _is_list(value: Any, of: Callable[[Any], bool], least: int = 1, most: int = MAX_FEATURES) -> bool:
    return isinstance(value, list) and least <= len(value) <= most and all(map(of, value))


def _are_names(value: Any, most: int) -> bool:
    is_valid = _is_list(value, lambda name: _is_text(name, MAX_NAME), most=most)
    return is_valid and len(set(value)) == len(value)


def _are_extents(value: Any) -> bool:
    return _is_list(value, lambda extent: _is_integer(extent, 1, MAX_EXTENT), most=MAX_NDIM)


def _is_preprocessing(value: Any) -> bool:
    if not isinstance(value, dict):
        return False
    try:
        extents = Preprocessing.from_json(value).resize
    except (ValueError, TypeError):
        return False
    return extents is None or prod(extent or 1 for extent in extents) <= MAX_PIXELS


def _is_drawing(value: Any) -> bool:
    if not isinstance(value, dict) or set(value) != {"size", "levels", "state"}:
        return False
    is_size = _is_list(value["size"], lambda extent: _is_integer(extent, 1, MAX_DRAWN_EXTENT), 2, 2)
    is_levels = _is_integer(value["levels"], 2, MAX_FEATURES)
    return is_size and is_levels and _is_integer(value["state"], 1, MAX_FEATURES)


def _is_parity(value: Any) -> bool:
    return isinstance(value, dict) and all(
        key in PARITY_KEYS and type(entry) in (int, float) and 0 <= entry <= sys.float_info.max
        for key, entry in value.items()
    )


def _or_null(rule: Rule) -> Rule:
    return Rule(lambda value: value is None or rule.holds(value), f"null, or {rule.expected}")


def _one_of(choices: Sequence[str]) -> Rule:
    return Rule(lambda value: isinstance(value, str) and value in choices, f"one of {', '.join(choices)}")


_TEXT = Rule(_is_text, f"a text of up to {MAX_TEXT} characters, none of them a control character")
_NAMES = Rule(
    lambda value: _are_names(value, MAX_TENSORS),
    f"up to {MAX_TENSORS} different names without control characters",
)
_FEATURES = Rule(lambda value: _is_integer(value, 1, MAX_FEATURES), f"an integer from 1 to {MAX_FEATURES}")
_EXTENTS = Rule(_are_extents, f"a list of integers from 1 to {MAX_EXTENT}")

RULES: dict[str, Rule] = {
    "version": _TEXT,
    "grid": _or_null(_EXTENTS),
    "form": _one_of(FORMS),
    "layout": Rule(
        lambda value: isinstance(value, str) and value in LAYOUTS, "axes such as 'N H W C' or 'N C H W'"
    ),
    "channels": _FEATURES,
    "outputs": _FEATURES,
    "inputs": Rule(lambda value: _NAMES.holds(value) and value[0] == "x", f"'x', then {_NAMES.expected}"),
    "window": _or_null(_EXTENTS),
    "output_names": _NAMES,
    "further_windows": Rule(
        lambda value: _is_list(value, _or_null(_EXTENTS).holds, 0, MAX_TENSORS),
        "a list of windows, each of them null or a list of extents",
    ),
    "multiple_of": _or_null(_EXTENTS),
    "dtype": _one_of(DTYPES),
    "model": _or_null(_TEXT),
    "task": _or_null(_TEXT),
    "kind": _or_null(_one_of(KINDS)),
    "classes": _or_null(
        Rule(
            lambda value: _are_names(value, MAX_FEATURES),
            f"different names of up to {MAX_NAME} characters, none of them a control character",
        )
    ),
    "mask_values": _or_null(
        Rule(
            lambda value: (
                _is_list(value, lambda v: _is_integer(v, -(2**31), MAX_EXTENT))
                and len(set(value)) == len(value)
            ),
            "different integers of 32 bits",
        )
    ),
    "mask_palette": _or_null(
        Rule(
            lambda value: _is_list(value, lambda v: _is_integer(v, 0, 255), most=3 * MAX_FEATURES),
            "a list of integers from 0 to 255",
        )
    ),
    "preprocessing": _or_null(
        Rule(_is_preprocessing, f"channels (1 or 3), and extents of at most {MAX_PIXELS} pixels or null")
    ),
    "text_direction": _or_null(_one_of(("ltr", "rtl"))),
    "drawing": _or_null(
        Rule(
            _is_drawing,
            f"size, two extents up to {MAX_DRAWN_EXTENT}; levels from 2 and state from 1 to {MAX_FEATURES}",
        )
    ),
    "checkpoint_sha256": _or_null(
        Rule(lambda value: isinstance(value, str) and bool(_SHA256.fullmatch(value)), "64 hex digits")
    ),
    "part": _or_null(_TEXT),
    "parity": Rule(_is_parity, f"finite numbers for {', '.join(PARITY_KEYS)}"),
}


def check_fields(values: Mapping[str, Any], label: str, advice: str) -> None:
    """Check each field by itself.

    Args:
        values: the fields as JSON values.
        label: what error messages call the model.
        advice: how to mend it.

    Raises:
        InputError: names the first field that is wrong, and what was expected.
    """
    for name, value in values.items():
        if name in RULES and not RULES[name].holds(value):
            raise field_error(name, value, RULES[name].expected, label, advice)


def check_consistency(metadata: Metadata, label: str, advice: str) -> None:
    """Check that the fields of metadata, each valid by itself, agree with one another.

    Raises:
        InputError: names the first field that does not.
    """
    for name, holds, expected in _consistency(metadata):
        if not holds:
            raise field_error(name, getattr(metadata, name), expected, label, advice)


def _consistency(metadata: Metadata) -> Iterator[tuple[str, bool, str]]:
    """The rules between fields: a field, whether the rule holds, and what was expected."""
    ndim, outputs, kind = metadata.ndim, metadata.outputs, metadata.kind
    further, classes = metadata.further_windows, metadata.classes
    of_layout = f"{ndim} extents, as the layout '{metadata.layout}' has {ndim} grid axes"
    for name in ("grid", "window", "multiple_of"):
        extents = getattr(metadata, name)
        yield name, extents is None or len(extents) == ndim, of_layout
    yield "further_windows", all(window is None or len(window) == ndim for window in further), of_layout
    count = len(metadata.output_names) - 1
    yield "further_windows", len(further) == count, f"{count} windows, as there are {count + 1} outputs"
    if kind not in (None, "grid", "density"):
        names = outputs - (kind == "transcribe")  # output 0 of a recogniser is the blank
        expected = f"{names} names, as a model of kind {kind} has {outputs} outputs"
        yield "classes", classes is not None and len(classes) == names, expected
    if kind == "segment":
        yield "window", metadata.window is not None, "extents, as a segmenter has a grid of classes"
    if kind == "density":
        ones = (1,) * ndim
        yield "window", metadata.window == ones, f"{list(ones)}, as a density has a number for each value"
        yield "outputs", outputs == metadata.channels, f"{metadata.channels}, one for each channel of x"
    values, palette = metadata.mask_values, metadata.mask_palette
    yield "mask_values", values is None or len(values) == outputs, f"{outputs} values, one for each class"
    yield "mask_palette", palette is None or len(palette) == 3 * outputs, f"{3 * outputs} values"
    draws = metadata.drawing is not None
    inputs = ("x", "above", "given", "temperature", "state")
    yield "drawing", not draws or (kind == "density" and ndim == 1), "null, as this is no row of an image"
    yield "inputs", not draws or metadata.inputs == inputs, f"{', '.join(inputs)}, which draw a row"
    drawn = ("y", "logits", "next_state")
    yield "output_names", not draws or metadata.output_names == drawn, ", ".join(drawn)
    if metadata.preprocessing is not None:
        channels = Preprocessing.from_json(metadata.preprocessing).channels
        of_x = f"{metadata.channels} channels, as x has"
        yield "preprocessing", (ndim, channels) == (2, metadata.channels), f"images with {of_x}"


def check_agreement(
    metadata: Metadata, inputs: Mapping[str, TensorType], outputs: Mapping[str, TensorType], label: str
) -> None:
    """Check that metadata describe the graph that they came with.

    Args:
        metadata: of the model.
        inputs, outputs: of the graph, by name.
        label: what error messages call the model.

    Raises:
        InputError: names the field or the tensor that contradicts the other.
    """
    advice = "export the model again"
    for field, names, tensors in (
        ("inputs", metadata.inputs, inputs),
        ("output_names", metadata.output_names, outputs),
    ):
        if set(names) != set(tensors):
            found = ascii(list(tensors))[:SHOWN]
            raise field_error(field, list(names), f"the names in the graph, {found}", label, advice)
    wrong = [(name, tensor, _unexpected_input(metadata, name, tensor)) for name, tensor in inputs.items()]
    wrong += [
        (name, tensor, _unexpected_output(metadata, name, tensor)) for name, tensor in outputs.items()
    ]
    for name, tensor, expected in wrong:
        if expected:
            raise InputError(
                f"{name!a} in the graph of {label} has {tensor.dtype} of shape "
                f"{_shape_text(tensor.shape)}, expected {expected} by its metadata; {advice}"
            )


def _unexpected_input(metadata: Metadata, name: str, tensor: TensorType) -> str:
    """What was expected of an input in place of what it is; "" if it is as expected."""
    if name == "x":
        extents = metadata.grid or (None,) * metadata.ndim
        features = metadata.channels
        shape = (None, *extents, features) if metadata.channels_last else (None, features, *extents)
        return _unless(tensor, "float32", shape)
    if name == "sizes":
        return _unless(tensor, "int64", (None, metadata.ndim))
    return "" if _is_numeric(tensor) else "numbers with a free batch axis"


def _unexpected_output(metadata: Metadata, name: str, tensor: TensorType) -> str:
    """What was expected of an output in place of what it is; "" if it is as expected."""
    if not _is_numeric(tensor):
        return "numbers with a free batch axis"
    rank, is_first = len(tensor.shape), name == metadata.output_names[0]
    if metadata.windows[name] is not None and rank != metadata.ndim + 2:
        return f"{metadata.ndim + 2} axes"
    if not is_first:
        return ""
    ranks = {"classify": 2, "transcribe": 3}
    if metadata.kind in ranks and rank != ranks[metadata.kind]:
        return f"{ranks[metadata.kind]} axes, as its kind is {metadata.kind}"
    if rank == 1:
        return "" if metadata.outputs == 1 else f"{metadata.outputs} outputs"
    axis = 1 if rank == metadata.ndim + 2 and not metadata.channels_last else -1
    return "" if tensor.shape[axis] in (None, metadata.outputs) else f"{metadata.outputs} outputs"


def _unless(tensor: TensorType, dtype: str, shape: Sequence[int | None]) -> str:
    """The expected type in words, unless a tensor has it. A free extent of the graph fits any extent."""
    fits = len(tensor.shape) == len(shape) and all(
        found is None or found == extent for found, extent in zip(tensor.shape, shape, strict=True)
    )
    if fits and tensor.dtype == dtype and tensor.shape[0] is None:
        return ""
    return f"{dtype} of shape {_shape_text(shape)}"


def _is_numeric(tensor: TensorType) -> bool:
    """Whether a tensor holds real numbers or bools and has a free batch axis."""
    kind = tensor.dtype.rstrip("0123456789")
    return kind in ("float", "int", "uint", "bool") and tensor.shape[:1] == (None,)


def _shape_text(shape: Sequence[int | None]) -> str:
    text = f"({', '.join('N' if extent is None else str(extent) for extent in shape)})"
    return text if len(text) <= SHOWN else f"{text[:SHOWN]}…"


def field_error(name: str, value: Any, expected: str, label: str, advice: str) -> InputError:
    """The error about one field."""
    shown = ascii(value)
    shown = shown if len(shown) <= SHOWN else f"{shown[:SHOWN]}…"
    return InputError(f"the metadata field {name!a} of {label} is {shown}; expected {expected}; {advice}")
