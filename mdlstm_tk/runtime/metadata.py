"""The metadata of exported models: JSON values in ONNX `metadata_props`, with keys `mdlstm.*`."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from typing import Any

from mdlstm_tk.errors import InputError
from mdlstm_tk.runtime.preprocessing import Preprocessing

KINDS = ("grid", "classify", "segment", "transcribe")
PREFIX = "mdlstm."
SCHEMA = 2
TUPLE_FIELDS = (
    "grid",
    "inputs",
    "window",
    "classes",
    "output_names",
    "further_windows",
    "multiple_of",
    "mask_values",
    "mask_palette",
)  # JSON stores them as lists


@dataclass(frozen=True)
class Metadata:
    """The metadata of an exported model.

    Attributes:
        version: version of mdlstm-tk that exported the model.
        grid: extents of the grid that the model takes; smaller grids fit, too, if `inputs` has "sizes".
            None: the model takes any grid.
        form: "unrolled" (the sweep written out for one grid) or "scan" (the sweep as a loop).
        layout: axes of x, for example "N H W C".
        channels: number of features at each position of x.
        outputs: number of features of y, at each position if y has a grid.
        output_names: names of the outputs; the first one is y, which all other fields describe.
        further_windows: like `window`, for each output after the first.
        multiple_of: the numbers that the extents of a grid must be multiples of; None if all extents fit.
        inputs: names of the inputs: x, then "sizes" (N, D) if the model takes padded samples, then extra
            inputs.
        window: extents of the part of x that one position of y covers. The grid of y is ⌈grid / window⌉,
            in the layout of x. None: y has no grid, but shape (N, outputs) or another.
        dtype: precision of the computation. Inputs and outputs are float32 in any case.
        model: name of the network, if the model was exported from a run.
        task: name of the task, if the model was exported from a run.
        kind: kind of the task: "grid", "classify", "segment" or "transcribe".
        classes: names of the outputs, if they are classes. For "transcribe", the characters of outputs 1,
            2, …; output 0 is the blank.
        checkpoint_sha256: checksum of the checkpoint, if the model was exported from a run.
        parity: {"atol", "rtol", "max_abs"}: the tolerance that the model met on export, and its largest
            error against float64.
        schema: version of this set of fields.
    """

    version: str
    grid: tuple[int, ...] | None
    form: str
    layout: str
    channels: int
    outputs: int
    inputs: tuple[str, ...] = ("x",)
    window: tuple[int, ...] | None = (1, 1)
    output_names: tuple[str, ...] = ("y",)
    further_windows: tuple[tuple[int, ...] | None, ...] = ()
    multiple_of: tuple[int, ...] | None = None
    dtype: str = "float32"
    model: str | None = None
    task: str | None = None
    kind: str | None = None
    classes: tuple[str, ...] | None = None
    mask_values: tuple[int, ...] | None = None
    mask_palette: tuple[int, ...] | None = None
    preprocessing: dict[str, Any] | None = None
    checkpoint_sha256: str | None = None
    parity: dict[str, float] = field(default_factory=dict)
    schema: int = SCHEMA

    @property
    def ndim(self) -> int:
        """D, the number of grid axes."""
        return len(self.layout.split()) - 2

    @property
    def windows(self) -> dict[str, tuple[int, ...] | None]:
        """The window of each output, by its name."""
        return dict(zip(self.output_names, (self.window, *self.further_windows), strict=True))

    @property
    def channels_last(self) -> bool:
        """Whether the channels are the last axis of x and of y, rather than the second."""
        return self.layout.endswith("C")

    def to_props(self) -> dict[str, str]:
        """The metadata as `metadata_props` store it."""
        return {PREFIX + name: json.dumps(value) for name, value in asdict(self).items()}

    def _is_valid(self) -> bool:
        """Check the types and ranges of all fields, as the file may be untrusted."""
        counts = (
            *(self.grid or ()),
            *(self.window or ()),
            *(self.multiple_of or ()),
            *(extent for window in self.further_windows for extent in window or ()),
            self.channels,
            self.outputs,
        )
        texts = (self.version, self.form, self.layout, self.dtype, *self.inputs, *self.output_names)
        optional = (self.model, self.task, self.checkpoint_sha256)
        axes = (self.grid, self.window, self.multiple_of, *self.further_windows)
        return (
            all(type(count) is int and count > 0 for count in counts)
            and all(isinstance(text, str) for text in (*texts, *(self.classes or ())))
            and all(text is None or isinstance(text, str) for text in optional)
            and all(extents is None or len(extents) == self.ndim for extents in axes)
            and self.ndim > 0
            and len(self.inputs) > 0
            and len(set(self.output_names)) == len(self.output_names) == len(self.further_windows) + 1
            and self.kind in (None, *KINDS)
            and self._has_names_of_all_outputs()
            and self._has_valid_masks()
            and isinstance(self.parity, dict)
            and all(isinstance(value, int | float) for value in self.parity.values())
        )

    def _has_names_of_all_outputs(self) -> bool:
        if self.kind in (None, "grid"):
            return True
        blanks = 1 if self.kind == "transcribe" else 0
        return self.classes is not None and len(self.classes) + blanks == self.outputs

    def _has_valid_masks(self) -> bool:
        values, palette = self.mask_values, self.mask_palette
        return (
            values is None or (len(values) == self.outputs and all(type(v) is int for v in values))
        ) and (
            palette is None
            or (len(palette) == 3 * self.outputs and all(type(v) is int and 0 <= v < 256 for v in palette))
        )

    @classmethod
    def from_props(cls, props: Mapping[str, str], label: str) -> Metadata:
        """Parse what `to_props` returned.

        Args:
            props: the model's `metadata_props`.
            label: what error messages call the model.

        Raises:
            InputError: the model was not exported by mdlstm-tk, by a newer version of it, or its metadata
                are damaged.
        """
        if PREFIX + "schema" not in props:
            raise InputError(
                f"{label} was not exported by mdlstm-tk (it has no mdlstm.* metadata); "
                "make one with: mdlstm export"
            )
        try:
            values: dict[str, Any] = {
                f.name: json.loads(props[PREFIX + f.name]) for f in fields(cls) if PREFIX + f.name in props
            }
            for name in TUPLE_FIELDS:
                if values.get(name) is not None:
                    values[name] = tuple(values[name])
            windows = values.get("further_windows", ())
            values["further_windows"] = tuple(None if w is None else tuple(w) for w in windows)
            if values.get("preprocessing") is not None:
                Preprocessing.from_json(values["preprocessing"])
            metadata = cls(**values)
            if metadata.schema == SCHEMA and not metadata._is_valid():
                raise ValueError
        except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
            raise InputError(
                f"the mdlstm.* metadata of {label} are damaged; export the model again"
            ) from None
        if metadata.schema != SCHEMA:
            raise InputError(
                f"the metadata of {label} have schema {metadata.schema}, but this version reads {SCHEMA}; "
                "install a newer mdlstm-tk"
            )
        return metadata
