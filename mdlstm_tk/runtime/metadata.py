"""What an exported model says of itself: JSON values in ONNX `metadata_props`, under `mdlstm.*`."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from typing import Any

from mdlstm_tk.errors import InputError

PREFIX = "mdlstm."
SCHEMA = 1


@dataclass(frozen=True)
class Metadata:
    """The metadata of an exported model.

    Attributes:
        version: of mdlstm-tk that exported it.
        grid: the extents it takes.
        form: "unrolled", the sweep written out for that grid.
        layout: of x and y, for example "N H W C".
        channels: features at each position of x.
        outputs: features at each position of y.
        model: the network's name, if it came from a run.
        task: what it was trained on, if it came from a run.
        classes: names of the outputs, if they are classes.
        checkpoint_sha256: of the checkpoint, if it came from a run.
        parity: {"atol", "rtol", "max_abs"}: the tolerance it passed, and its largest error, against
            float64 when it was exported.
        schema: version of this list.
    """

    version: str
    grid: tuple[int, ...]
    form: str
    layout: str
    channels: int
    outputs: int
    model: str | None = None
    task: str | None = None
    classes: tuple[str, ...] | None = None
    checkpoint_sha256: str | None = None
    parity: dict[str, float] = field(default_factory=dict)
    schema: int = SCHEMA

    def to_props(self) -> dict[str, str]:
        """As `metadata_props` hold it."""
        return {PREFIX + name: json.dumps(value) for name, value in asdict(self).items()}

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
            values["grid"] = tuple(int(extent) for extent in values["grid"])
            if values.get("classes") is not None:
                values["classes"] = tuple(values["classes"])
            metadata = cls(**values)
        except (ValueError, TypeError, KeyError):
            raise InputError(f"{shown} has damaged mdlstm.* metadata; export it again") from None
        if metadata.schema != SCHEMA:
            raise InputError(
                f"{shown} has metadata of schema {metadata.schema}, this version reads {SCHEMA}; "
                "install a newer mdlstm-tk"
            )
        return metadata
