"""Values are checked against annotations."""

from __future__ import annotations

from typing import Any, TypeVar

import numpy as np
import pytest
from typing_extensions import TypeAliasType

from mdlstm_tk._util.checks import expected, fit_argument
from mdlstm_tk.errors import InputError

S = TypeVar("S", bound=np.generic)
ARRAY: Any = TypeAliasType("ARRAY", np.ndarray[Any, np.dtype[S]], type_params=(S,))  # as of NumPy 2.5
NUMBER: Any = TypeAliasType("NUMBER", int | None)


def test_an_alias_stands_for_its_value() -> None:
    x = np.zeros(2, np.float32)
    for hint in (ARRAY[np.float32], ARRAY, ARRAY[np.float32] | None):
        assert fit_argument("x", x, hint) is x
        assert expected(hint).startswith("an array")
    assert fit_argument("n", 3, NUMBER) == 3
    with pytest.raises(InputError, match="n must be an integer or None, got 'a'"):
        fit_argument("n", "a", NUMBER)
