"""How kernels are compiled by Numba and cached; see `cache_folder` for where they are kept."""

from __future__ import annotations

import ast
import hashlib
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache, partial
from pathlib import Path
from typing import Any

from numba import cfunc, njit
from numba.core import config

from mdlstm_tk.backends.cpu.cache_folder import cache_folder

_config_lock = threading.Lock()
OPTIONS: dict[str, Any] = {"nogil": True, "error_model": "numpy"}


@cache
def _source_digest() -> str:
    """A digest of the code in this folder, on which compiled code depends; comments, docstrings and layout
    do not count. Numba itself looks only at the file and name of one function."""
    digest = hashlib.sha256()
    for path in sorted(Path(__file__).parent.glob("*.py")):
        tree = ast.parse(path.read_bytes())
        for node in ast.walk(tree):
            if isinstance(node, ast.Module | ast.FunctionDef | ast.ClassDef) and ast.get_docstring(node):
                del node.body[0]
        digest.update(ast.dump(tree).encode())
    return digest.hexdigest()


def jit(function: Callable[..., Any]) -> Any:
    """Compile for Numba as a part of the function that calls it."""
    return njit(**OPTIONS)(function)


def njit_cached(function: Callable[..., Any], signature: str) -> Any:
    """Compile for Numba, and cache the code on disk if there is a place to write to.

    A cached function has one signature, so its name must tell dtypes apart: two processes that add
    signatures to the same function on disk can end up with each other's code.
    """
    return _cached(function, partial(njit, signature), "")


def cfunc_cached(function: Callable[[int], None], key: str) -> Any:
    """Compile as a C function that takes one int64, which any thread may call, and cache it in the same
    way.

    Args:
        function: the function.
        key: whatever the code depends on beside the sources in this folder.
    """
    return _cached(function, partial(cfunc, "void(int64)"), key)


def _cached(function: Callable[..., Any], compiler: Callable[..., Any], key: str) -> Any:
    function.__qualname__ += f"_{hashlib.sha256((_source_digest() + key).encode()).hexdigest()[:12]}"
    folder = cache_folder()
    if folder is not None:
        try:
            with _caching_in(folder):
                return compiler(cache=True, **OPTIONS)(function)
        except Exception:  # a full disk, or a damaged cache
            pass
    return compiler(**OPTIONS)(function)


@contextmanager
def _caching_in(folder: Path) -> Iterator[None]:
    """Let functions that are created inside this `with` statement be cached in `folder` and nowhere else.

    Numba knows only settings of the whole process. They are restored, as the user's own functions have
    their own place. The locators are set because a `.numba_config.yaml` in the current folder could name
    others, even modules to import.
    """
    changed = {"CACHE_DIR": str(folder), "CACHE_LOCATOR_CLASSES": "UserProvidedCacheLocator"}
    with _config_lock:
        before = {name: getattr(config, name) for name in changed}
        vars(config).update(changed)
        try:
            yield
        finally:
            vars(config).update(before)
