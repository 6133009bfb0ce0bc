"""How the kernels are compiled, and where the compiled code is kept."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from functools import cache, partial
from pathlib import Path
from typing import Any

from numba import cfunc, njit

OPTIONS: dict[str, Any] = {"nogil": True, "error_model": "numpy"}


@cache
def _digest() -> str:
    """Changes with any source that compiled code depends on: Numba itself looks at one file, and at the
    function's name."""
    here = Path(__file__).parents[2]
    sources = (
        path.read_bytes()
        for path in (
            *sorted((here / "cells").glob("*.py")),
            *sorted((here / "backends" / "cpu").glob("*.py")),
        )
    )
    return hashlib.sha256(b"".join(sources)).hexdigest()[:12]


def jit(function: Callable[..., Any]) -> Any:
    """Compile for Numba as a part of what calls it."""
    return njit(**OPTIONS)(function)


def kept(function: Callable[..., Any], signature: str) -> Any:
    """Compile for Numba, and keep the code on disk where there is a place to write to.

    A kept function is for one signature, so its name must tell dtypes apart: two processes that add
    signatures to the same function on disk can end up with each other's code.
    """
    return _kept(function, partial(njit, signature))


def kept_entry(function: Callable[[int], None]) -> Any:
    """Likewise, as a C function that takes one int64: any thread may call its `address`, at once with
    others."""
    return _kept(function, partial(cfunc, "void(int64)"))


def _kept(function: Callable[..., Any], compiler: Callable[..., Any]) -> Any:
    function.__qualname__ += f"_{_digest()}"
    try:
        return compiler(cache=True, **OPTIONS)(function)
    except Exception:  # no place to write to, a full disk, or what lies there is broken
        return compiler(**OPTIONS)(function)
