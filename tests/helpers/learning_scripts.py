"""Scripts of benchmarks/ that measure learning, imported so that no other test sees the networks and tasks
that they register."""

from __future__ import annotations

import copy
import sys

import pytest

from helpers.checkout import ROOT
from mdlstm_tk.models import registry

sys.path.insert(0, str(ROOT / "benchmarks"))

with pytest.MonkeyPatch.context() as patched:
    patched.setattr(registry, "_FACTORIES", copy.deepcopy(registry._FACTORIES))
    import baselines
    import handwriting
    import learning
    import own_data

__all__ = ["baselines", "handwriting", "learning", "own_data"]
