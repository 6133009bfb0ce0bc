"""Kernels are compiled by Numba and cached; see `cache_folder` for where they are kept.

Some functions for each dtype are the same for all cells: forward and backward, the matrix product, and
those that pack weights. One more is made for each pass of a cell. All are C functions of int64, which any
thread may call without Python's lock.
"""

from __future__ import annotations

import ast
import hashlib
import logging
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from glob import glob
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numba import cfunc, njit
from numba.core import config

from mdlstm_tk.backends.cpu import simd
from mdlstm_tk.backends.cpu.cache_folder import cache_folder
from mdlstm_tk.backends.specialize import compiling, specialize
from mdlstm_tk.cells import graph as operations
from mdlstm_tk.cells.graph import Kernel

_log = logging.getLogger("mdlstm_tk")
_config_lock = threading.Lock()
OPTIONS: dict[str, Any] = {"nogil": True, "error_model": "numpy"}
Generic = Literal["run_jobs", "forward", "backward", "matmul", "pack", "pack_transposed", "unpack"]


@cache
def announce(subject: str, is_kept: bool) -> None:
    """Tell the user why a call takes long, once for each subject. Without handlers of their own, Python
    prints warnings of a logger on standard error."""
    how_often = "once; later runs take it from the cache"
    if not is_kept:
        how_often = "as every process does, since there is no folder to keep it in; see `mdlstm doctor`"
    _log.warning(f"mdlstm-tk compiles {subject} for this CPU, {how_often}")


def jit(function: Callable[..., Any]) -> Any:
    """Compile for Numba as a part of the function that calls it."""
    return njit(**OPTIONS)(function)


@cache
def generic_kernel(name: Generic, dtype: str) -> Any:
    """A function that is the same for all cells, as Numba's C function.

    Raises:
        KernelError: it cannot be compiled.
    """
    from mdlstm_tk.backends.cpu import kernels, matmul

    with compiling(f"{name}_{dtype}"):
        template = getattr(kernels if name in ("run_jobs", "forward", "backward") else matmul, name)
        function = specialize(template, f"{name}_{dtype}", ZERO=np.dtype(dtype).type(0))
        return _compile(function, "", "its kernels")


def compile_cell(kernel: Kernel, dtype: str, ndim: int, states: int, cell: str) -> Any:
    """The C function of `cell_code.block_function` for a kernel.

    Args:
        kernel: the graph of a pass.
        dtype, ndim, states: its dtype, D and S.
        cell: the name of the cell, for messages.

    Raises:
        KernelError: it cannot be compiled.
    """
    from mdlstm_tk.backends.cpu.cell_code import block_function

    key = f"{dtype} {ndim} {states}\n{kernel.text}"
    if key not in _cells:
        with compiling(f"of cell '{cell}'"):
            function = block_function(kernel, ndim, states, np.dtype(dtype).type(0))
            function.__name__ = function.__qualname__ = f"cell_{dtype}_{ndim}d"
            _cells[key] = _compile(function, key, f"cell '{cell}'")
    return _cells[key]


_cells: dict[str, Any] = {}  # by everything that the code depends on, not by name: cells can be redefined


def _compile(function: Callable[..., None], key: str, subject: str) -> Any:
    """Compile a C function of int64, and cache the code on disk if there is a place to write to.

    Args:
        function: the function.
        key: whatever the code depends on beside the sources in this folder and the function's name.
        subject: what is compiled, for people.
    """
    vectors = (
        simd.VECTOR_BYTES,
        simd.TILE_ROWS,
        simd.TILE_VECTORS,
    )  # Numba's own key does not tell them apart
    source = f"{_source_digest()} {vectors} {function.__name__} {key}"
    digest = hashlib.sha256(source.encode()).hexdigest()[:16]
    function.__qualname__ += f"_{digest}"
    signature = f"void({', '.join(['int64'] * function.__code__.co_argcount)})"
    folder = cache_folder()
    # Path.rglob of Python 3.11 raises if another process removes a folder meanwhile; glob does not.
    if folder is None or not glob(f"**/*{digest}*.nbi", root_dir=folder, recursive=True):
        announce(subject, folder is not None)
    if folder is not None:
        try:
            with _caching_in(folder):
                return cfunc(signature, cache=True, **OPTIONS)(function)
        except Exception:  # a full disk, or a damaged cache
            pass
    return cfunc(signature, **OPTIONS)(function)


@cache
def _source_digest() -> str:
    """A digest of the code in this folder and of the table of operations, on which compiled code depends;
    comments, docstrings and layout do not count. Numba itself looks only at the file and name of one
    function."""
    digest = hashlib.sha256()
    for path in (*sorted(Path(__file__).parent.glob("*.py")), Path(operations.__file__)):
        tree = ast.parse(path.read_bytes())
        for node in ast.walk(tree):
            if isinstance(node, ast.Module | ast.FunctionDef | ast.ClassDef) and ast.get_docstring(node):
                del node.body[0]
        digest.update(ast.dump(tree).encode())
    return digest.hexdigest()


@contextmanager
def _caching_in(folder: Path) -> Iterator[None]:
    """Let functions that are created inside this `with` statement be cached in `folder` and nowhere else.

    Numba has settings of the whole process only. They are restored, because functions of the user have a
    place of their own. The locators are set because a `.numba_config.yaml` in the current folder could name
    others, even modules to import.
    """
    settings = {"CACHE_DIR": str(folder), "CACHE_LOCATOR_CLASSES": "UserProvidedCacheLocator"}
    with _config_lock:
        user_settings = {name: getattr(config, name) for name in settings}
        vars(config).update(settings)
        try:
            yield
        finally:
            vars(config).update(user_settings)
