"""The metadata of exported models: JSON values in ONNX `metadata_props`, with keys `mdlstm.*`."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from typing import Any

from mdlstm_tk.errors import InputError

PREFIX = "mdlstm."
SCHEMA = 1
TUPLE_FIELDS = ("grid", "inputs", "window", "classes")  # JSON stores them as lists


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
    dtype: str = "float32"
    model: str | None = None
    task: str | None = None
    kind: str | None = None
    classes: tuple[str, ...] | None = None
    checkpoint_sha256: str | None = None
    parity: dict[str, float] = field(default_factory=dict)
    schema: int = SCHEMA

    @property
    def ndim(self) -> int:
        """D, the number of grid axes."""
        return len(self.layout.split()) - 2

    @property
    def channels_last(self) -> bool:
        """Whether the channels are the last axis of x and of y, rather than the second."""
        return self.layout.endswith("C")

    def to_props(self) -> dict[str, str]:
        """The metadata as `metadata_props` store it."""
        return {PREFIX + name: json.dumps(value) for name, value in asdict(self).items()}

    def _is_valid(self) -> bool:
        """Check the types and ranges of all fields, as the file may be untrusted."""
        counts = (*(self.grid or ()), *(self.window or ()), self.channels, self.outputs)
        texts = (self.version, self.form, self.layout, self.dtype, *self.inputs, *(self.classes or ()))
        optional = (self.model, self.task, self.checkpoint_sha256)
        return (
            all(type(count) is int and count > 0 for count in counts)
            and all(isinstance(text, str) for text in texts)
            and all(text is None or isinstance(text, str) for text in optional)
            and all(axes is None or len(axes) == self.ndim for axes in (self.grid, self.window))
            and self.ndim > 0
            and len(self.inputs) > 0
            and isinstance(self.parity, dict)
            and all(isinstance(value, int | float) for value in self.parity.values())
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
