"""Odd layouts, extents and needs for gradients on every backend, drawn at random from fixed seeds."""

from __future__ import annotations

import pytest
from helpers.odd_inputs import OddCase

pytestmark = pytest.mark.usefixtures("poisoned_memory", "one_thread")


@pytest.mark.parametrize("backend", ["torch", "fused"])
@pytest.mark.parametrize("seed", range(24))
def test_agrees_with_reference(seed: int, backend: str) -> None:
    OddCase(seed).check(backend)
