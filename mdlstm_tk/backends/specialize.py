"""Kernels are templates: functions some of whose globals each compiled version replaces."""

from __future__ import annotations

from types import FunctionType
from typing import Any


def specialize(template: Any, name: str, **replaced: Any) -> Any:
    """A copy of the function `template`, called `name`, which sees `replaced` in place of its globals.

    Numba and Triton both identify compiled code by the function's name, so `name` must tell apart
    everything that the replaced globals change.
    """
    function = FunctionType(template.__code__, {**template.__globals__, **replaced}, name)
    function.__annotations__ = template.__annotations__
    function.__qualname__ = name
    return function
