"""Which backend runs, and why."""

from __future__ import annotations

from functools import cache
from types import ModuleType
from typing import NamedTuple

import torch

from mdlstm_tk.backends.torch import sweep as unrolled
from mdlstm_tk.errors import InputError

BACKENDS = ("auto", "fused", "unrolled", "reference")
COMPILED = {"cpu": "compiled by Numba for the CPU", "cuda": "compiled by Triton for the GPU"}
FUSED_DTYPES = (torch.float32, torch.float64, torch.float16, torch.bfloat16)


class Choice(NamedTuple):
    """The backend that runs, "fused", "unrolled" or "reference", and why."""

    name: str
    reason: str


def check_backend(backend: str) -> str:
    """`backend`, if there is one of that name.

    Raises:
        InputError: there is none.
    """
    if backend not in BACKENDS:
        raise InputError(f"backend must be one of {', '.join(BACKENDS)}, got {backend!r}")
    return backend


def choose(backend: str, device: torch.device, dtype: torch.dtype) -> Choice:
    """The backend that `backend` stands for: "auto" takes "fused" where that can run, else "unrolled".

    Raises:
        InputError: there is none of that name, or "fused" cannot run this.
    """
    if check_backend(backend) in ("unrolled", "reference"):
        return Choice(backend, "as asked")
    hindrance = _why_not_fused(device.type, dtype)
    if not hindrance:
        return Choice("fused", COMPILED[device.type] if backend == "auto" else "as asked")
    if backend == "fused":
        raise InputError(f"backend='fused' cannot run this: {hindrance}; use backend='auto'")
    return Choice("unrolled", hindrance)


def engine(backend: str, device: torch.device) -> ModuleType:
    """The module with `forward` and `backward` of "fused" or "unrolled"."""
    if backend == "unrolled":
        return unrolled
    if device.type == "cuda":
        from mdlstm_tk.backends.cuda import launch  # imports Triton

        return launch
    from mdlstm_tk.backends.cpu import launch as cpu_launch  # imports Numba

    return cpu_launch


def _why_not_fused(device: str, dtype: torch.dtype) -> str:
    """What keeps the fused backend from running, or ""."""
    if device not in COMPILED:
        return f"fused kernels are for {' and '.join(COMPILED)}, and x is on {device}"
    if dtype not in FUSED_DTYPES:
        known = ", ".join(_name(known) for known in FUSED_DTYPES)
        return f"fused kernels are for {known}, and x is {_name(dtype)}"
    return str(_numba_problem() if device == "cpu" else _triton_problem())


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


@torch.compiler.assume_constant_result  # type: ignore[untyped-decorator]
def _numba_problem() -> str:
    """Why Numba cannot be imported, or ""."""
    return _import_numba()


@torch.compiler.assume_constant_result  # type: ignore[untyped-decorator]
def _triton_problem() -> str:
    """Why Triton cannot compile for the GPU, or ""."""
    return _try_triton()


@cache
def _import_numba() -> str:
    try:
        import numba  # noqa: F401
    except ImportError as error:  # not there, or not for this NumPy
        return f"numba cannot be imported ({error})"
    return ""


@cache
def _try_triton() -> str:
    """torch brings Triton, but not on every system; and Triton needs a C compiler to launch kernels."""
    if torch.version.hip is not None:
        return "fused kernels are for GPUs by NVIDIA"
    capability = torch.cuda.get_device_capability()
    if capability < (7, 0):
        return "Triton needs compute capability 7.0, and the GPU has {}.{}".format(*capability)
    try:
        import triton

        triton.runtime.driver.active.get_current_target()
    except Exception as error:
        return f"Triton does not work here ({str(error).strip().partition(chr(10))[0]})"
    return ""
