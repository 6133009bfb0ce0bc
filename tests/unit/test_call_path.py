"""The path of a warm call: few modules, and nothing that depends only on shapes is computed again."""

from __future__ import annotations

import sys
from pathlib import Path
from types import FrameType
from typing import Any

import pytest
import torch

import mdlstm_tk
from mdlstm_tk import MDLSTM

ROOT = Path(mdlstm_tk.__file__).parent


@pytest.mark.parametrize("directions", [1, "all"])
def test_a_warm_call_passes_through_six_modules(directions: Any) -> None:
    layer, x = MDLSTM(3, 8, directions=directions), torch.rand(2, 6, 7, 3)
    modules: set[str] = set()

    def profile(frame: FrameType, event: str, _: object) -> None:
        path = Path(frame.f_code.co_filename)
        if event == "call" and path.is_relative_to(ROOT):
            modules.add(str(path.relative_to(ROOT)))

    with torch.no_grad():
        layer(x)
        sys.setprofile(profile)
        try:
            layer(x)
        finally:
            sys.setprofile(None)
    assert modules <= {
        "layer.py",
        "operator.py",
        "backends/inputs.py",
        "backends/cpu/launch.py",
        "backends/cpu/packed_weights.py",
        "backends/cpu/threads.py",
    }
