"""What an exported model says of itself: JSON values in ONNX `metadata_props`, under `mdlstm.*`."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from typing import Any

from mdlstm_tk.errors import InputError

PREFIX = "mdlstm."
SCHEMA = 1
TUPLES = ("grid", "inputs", "window", "classes")  # JSON has lists


@dataclass(frozen=True)
class Metadata:
    """The metadata of an exported model.

    Attributes:
        version: of mdlstm-tk that exported it.
        grid: the extents it takes; with an input "sizes" also smaller ones. None: any.
        form: "unrolled", the sweep written out for that grid, or "scan", as a loop.
        layout: of x, for example "N H W C".
        channels: features at each position of x.
        outputs: features of y, at each position if it has a grid.
        inputs: names of the inputs: x, then "sizes" (N, D) if it takes padded samples, then others.
        window: extents that one position of y stands for, whose grid is ⌈grid / window⌉ in the layout of
            x. None: y has no grid, it is (N, outputs) or of a shape of its own.
        dtype: that it computes in. What goes in and comes out is float32 in any case.
        model: the network's name, if it came from a run.
        task: what it was trained on, if it came from a run.
        kind: of the task: "grid", "classify", "segment" or "transcribe", if it came from a run.
        classes: names of the outputs, if they are classes; of "transcribe" the characters of outputs 1,
            2, …, as output 0 is the blank.
        checkpoint_sha256: of the checkpoint, if it came from a run.
        parity: {"atol", "rtol", "max_abs"}: the tolerance it passed, and its largest error, against
            float64 when it was exported.
        schema: version of this list.
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
        """Are the channels of x (and of y, if it has a grid) the last axis, not the second?"""
        return self.layout.endswith("C")

    def to_props(self) -> dict[str, str]:
        """As `metadata_props` hold it."""
        return {PREFIX + name: json.dumps(value) for name, value in asdict(self).items()}

    def _is_sane(self) -> bool:
        """Is everything of the type it should be? It comes from a file, which may come from anybody."""
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
    def from_props(cls, props: Mapping[str, str], shown: str) -> Metadata:
        """Read it back.

        Raises:
            InputError: the file was not exported by mdlstm-tk, or by a newer one.
        """
        if PREFIX + "schema" not in props:
            raise InputError(
                f"{shown} was not exported by mdlstm-tk (it has no mdlstm.* metadata); "
                "make one with: mdlstm export"
            )
        try:
            values: dict[str, Any] = {
                f.name: json.loads(props[PREFIX + f.name]) for f in fields(cls) if PREFIX + f.name in props
            }
            for name in TUPLES:
                if values.get(name) is not None:
                    values[name] = tuple(values[name])
            metadata = cls(**values)
            if metadata.schema == SCHEMA and not metadata._is_sane():
                raise ValueError
        except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
            raise InputError(f"{shown} has damaged mdlstm.* metadata; export it again") from None
        if metadata.schema != SCHEMA:
            raise InputError(
                f"{shown} has metadata of schema {metadata.schema}, this version reads {SCHEMA}; "
                "install a newer mdlstm-tk"
            )
        return metadata
