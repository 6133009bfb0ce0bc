"""The metadata of exported models: JSON values in ONNX `metadata_props`, with keys `mdlstm.*`."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import MISSING, asdict, dataclass, field, fields
from math import prod
from typing import Any

from mdlstm_tk.errors import InputError
from mdlstm_tk.runtime.io.npy import FLOAT_BYTES
from mdlstm_tk.runtime.metadata_checks import MAX_BYTES, check_consistency, check_fields
from mdlstm_tk.runtime.text_order import Direction

PREFIX = "mdlstm."
SCHEMA = 2


@dataclass(frozen=True)
class Metadata:
    """The metadata of an exported model.

    Attributes:
        version: version of mdlstm-tk that exported the model.
        grid: extents of the grid that the model takes; smaller grids fit, too, if `inputs` has "sizes".
            None: the model takes any grid.
        form: "unrolled" (the sweep written out for one grid), "scan" (the sweep as a loop) or "tiles" (a
            graph for each sweep, with faces as inputs and outputs, for grids in tiles).
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
        kind: kind of the task: "grid", "classify", "segment", "transcribe" or "density".
        classes: names of the outputs, if they are classes. For "transcribe", the characters of outputs 1,
            2, …; output 0 is the blank.
        text_direction: of a recogniser, the direction in which most texts run; None: texts are in the order
            in which an image shows them.
        drawing: of a graph that draws the rows of images: "size", the extents of the training images;
            "levels" that a value can have; and "state", the number of features of a position's state. None
            for any other graph.
        checkpoint_sha256: checksum of the checkpoint, if the model was exported from a run.
        part: for a graph of a tiles export, which one it is, such as "stage-0/sweep-1" or "head".
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
    text_direction: Direction | None = None
    drawing: dict[str, Any] | None = None
    checkpoint_sha256: str | None = None
    part: str | None = None
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

    @property
    def sample_bytes(self) -> int:
        """Bytes of one sample x as float32, and of an image before it is one; 0 if the model takes any grid
        and resizes no image."""
        resized = (self.preprocessing or {}).get("resize")
        positions = max(prod(extent or 0 for extent in extents or (0,)) for extents in (self.grid, resized))
        return positions * self.channels * FLOAT_BYTES

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
        """Parse what `to_props` returned, and check it: the model may come from a stranger.

        Args:
            props: the model's `metadata_props`.
            label: what error messages call the model.
            advice: how to mend what is wrong.

        Raises:
            InputError: the model was not exported by mdlstm-tk, or by a newer version of it, or a field is
                missing, unknown or wrong; the message names it.
        """
        texts = {key.removeprefix(PREFIX): text for key, text in props.items() if key.startswith(PREFIX)}
        if "schema" not in texts:
            raise InputError(
                f"{label} was not exported by mdlstm-tk (it has no mdlstm.* metadata); "
                "make one with: mdlstm export"
            )
        if sum(len(name) + len(text) for name, text in texts.items()) > MAX_BYTES:
            raise InputError(
                f"the mdlstm.* metadata of {label} take more than {MAX_BYTES} characters; {advice}"
            )
        values = {name: _parsed(name, text, label, advice) for name, text in texts.items()}
        schema = values["schema"]
        if type(schema) is not int or schema != SCHEMA:
            raise InputError(
                f"the metadata of {label} have schema {schema!a:.60}, but this version reads {SCHEMA}; "
                "install a newer mdlstm-tk, or export the model again"
            )
        known = {f.name: f.default is MISSING and f.default_factory is MISSING for f in fields(cls)}
        missing = [name for name, is_required in known.items() if is_required and name not in values]
        unknown = [name for name in values if name not in known]
        if missing or unknown:
            problem = f"lack {missing[0]!a}" if missing else f"have an unknown field {unknown[0]!a:.60}"
            raise InputError(f"the metadata of {label} {problem}; {advice}")
        check_fields(values, label, advice)
        metadata = cls(**{name: _without_lists(value) for name, value in values.items()})
        check_consistency(metadata, label, advice)
        return metadata


def _parsed(name: str, text: str, label: str, advice: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        raise InputError(f"the metadata field {name!a:.60} of {label} is not JSON; {advice}") from None


def _without_lists(value: Any) -> Any:
    """JSON has lists where metadata have tuples; dicts stay as they are."""
    return tuple(map(_without_lists, value)) if isinstance(value, list) else value
