"""The options of an export, which `export_onnx`, `export_run`, `export_tiles` and the command line share.

Each annotation is a type and the default. `export_onnx` describes the options.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, Any, TypedDict

from torch import Tensor

from mdlstm_tk.export.verification.cases import ExampleRange
from mdlstm_tk.io import Array
from mdlstm_tk.io.metadata import Dtype, Form


class RunOptions(TypedDict, total=False):
    """Options that an export of a run takes, too; the others follow from its checkpoint."""

    form: Annotated[Form | None, None]
    padded: Annotated[bool, False]
    multiple_of: Annotated[int | Sequence[int] | None, None]
    dtype: Annotated[Dtype, "float32"]
    atol: Annotated[float | None, None]


class TileOptions(TypedDict, total=False):
    """Options that an export of tiles takes, too."""

    atol: Annotated[float | None, None]
    channels: Annotated[int | None, None]
    example_range: Annotated[ExampleRange | None, None]
    verify_inputs: Annotated[Mapping[str, Array] | None, None]
    metadata: Annotated[Mapping[str, Any] | None, None]


class ExportOptions(RunOptions, TileOptions, total=False):
    """All options of `export_onnx` but grid."""

    extra_inputs: Annotated[Mapping[str, Tensor] | None, None]
    grid_inputs: Annotated[Sequence[str], ()]
    output_names: Annotated[Sequence[str] | None, None]
    channels_last: Annotated[bool | None, None]
