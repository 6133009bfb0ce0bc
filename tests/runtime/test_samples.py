"""`Session.sample` without a model: what is refused before it runs."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from mdlstm_tk.errors import InputError
from mdlstm_tk.runtime import Metadata
from mdlstm_tk.runtime.samples import Given, draw_rows

DRAWING = {"size": [4, 5], "levels": 2, "state": 3}
GREY, EVERYWHERE = np.full((4, 5, 1), 0.5, np.float32), np.ones((4, 5), bool)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"n": 0}, "must be at least 1, got 0"),
        ({"temperature": 0}, "temperature must be above 0"),
        ({"uniform": np.zeros((2, 4, 4, 1))}, r"uniform must be .* \(2, 4, 5, 1\)"),
        ({"uniform": np.ones((2, 4, 5, 1))}, r"uniform must lie in \[0, 1\), got 1\.0 to 1\.0"),
        ({"uniform": np.full((2, 4, 5, 1), np.nan)}, r"uniform must lie in \[0, 1\)"),
        ({"given": Given(4 * GREY, EVERYWHERE)}, r"given values must lie in \[0, 1\], got 2\.0 to 2\.0"),
        ({"given": Given(GREY, EVERYWHERE[:2])}, r"got shapes \(4, 5, 1\) and \(2, 5\)"),
    ],
)
def test_numbers_out_of_range_are_refused(options: dict[str, Any], message: str) -> None:
    metadata = Metadata("0", None, "scan", "N W C", 1, 1, kind="density", window=(1,), drawing=DRAWING)
    arguments: dict[str, Any] = {"n": 2, "size": None, "seed": 0, "uniform": None, "given": None}
    with pytest.raises(InputError, match=message):
        draw_rows(SimpleNamespace(metadata=metadata), **{"temperature": 1.0, **arguments, **options})
