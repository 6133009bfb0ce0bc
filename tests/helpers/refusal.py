"""The line that a call is refused with."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from mdlstm_tk.errors import InputError


def refused(message: str, call: Callable[[], object]) -> None:
    """Check that a call raises an `InputError` of one line that matches `message`."""
    with pytest.raises(InputError, match=message) as caught:
        call()
    assert "\n" not in str(caught.value)
