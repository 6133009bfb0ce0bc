"""The common layers of PyTorch around a sweep, and every form of a sweep, need no trust."""

from __future__ import annotations

from itertools import product
from typing import Any

import numpy as np
import onnx
import pytest
from helpers import layers
from helpers.sweeps import FORMS, GRIDS, Sweep

from mdlstm_tk.cells import BUILT_IN_CELLS
from mdlstm_tk.export import lower
from mdlstm_tk.export.lowering.functions import outline
from mdlstm_tk.export.model_file import operators_to_trust
from mdlstm_tk.export.quantization import quantize

GROUPS = [(group, True) for group in layers.ANY_GRID] + [(group, False) for group in layers.ONE_GRID]


@pytest.mark.parametrize(
    ("group", "any_grid"), GROUPS, ids=lambda value: "" if isinstance(value, list) else str(value)
)
def test_common_layers_need_no_trust(group: Any, any_grid: bool) -> None:
    assert operators_to_trust(layers.exported(group, any_grid=any_grid)) == ()


OPTIONS: list[dict[str, Any]] = [
    {"bias": False, "dtype": np.float16},
    {"peephole": True, "layer_norm": True},
    *({"cell": cell, "directions": "all"} for cell in BUILT_IN_CELLS),
    *({"ndim": ndim, "cell": "stable"} for ndim in GRIDS),
]


@pytest.mark.parametrize(("options", "form"), product(OPTIONS, FORMS), ids=str)
def test_sweeps_need_no_trust(options: dict[str, Any], form: str) -> None:
    sweep, ndim = Sweep.random(**options), options.get("ndim", 2)
    captured = sweep.captured([-1] * ndim if form.endswith("free") else GRIDS[ndim], sizes=True)
    plain = lower(captured, form.split(",")[0])
    models: list[onnx.ModelProto] = [plain]
    if "dtype" not in options:
        models.append(quantize(lower(captured, form.split(",")[0], separate_products=True)))
    if form == "unrolled":
        models += [outline(model) for model in models]
    assert operators_to_trust(*models) == ()
