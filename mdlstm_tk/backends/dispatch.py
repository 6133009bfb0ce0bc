"""Which backend runs, and why."""

from __future__ import annotations

from functools import cache
from types import ModuleType
from typing import NamedTuple

import torch

from mdlstm_tk.backends.torch import sweep as torch_sweep
from mdlstm_tk.errors import InputError

BACKENDS = ("auto", "fused", "torch", "reference")
COMPILERS = {"cpu": "compiled by Numba for the CPU", "cuda": "compiled by Triton for the GPU"}
FUSED_DTYPES = (torch.float32, torch.float64, torch.float16, torch.bfloat16)


class Choice(NamedTuple):
    """The backend that runs ("fused", "torch" or "reference"), and why."""

    name: str
    reason: str


def check_backend(backend: str) -> str:
    """Return `backend` if there is one of that name.

    Raises:
        InputError: there is none.
    """
    if backend not in BACKENDS:
        raise InputError(f"backend must be one of {', '.join(BACKENDS)}, got {backend!r}")
    return backend


@cache
def choose(backend: str, device: torch.device, dtype: torch.dtype) -> Choice:
    """The backend that `backend` stands for: "auto" is "fused" where that can run, else "torch".

    Raises:
        InputError: there is no such backend, or "fused" was asked for and cannot run.
    """
    if check_backend(backend) in ("torch", "reference"):
        return Choice(backend, "as asked")
    obstacle = _fused_obstacle(device, dtype)
    if not obstacle:
        return Choice("fused", COMPILERS[device.type] if backend == "auto" else "as asked")
    if backend == "fused":
        raise InputError(f"backend='fused' cannot run this: {obstacle}; use backend='auto'")
    return Choice("torch", obstacle)


@cache
def engine(backend: str, device: torch.device, dtype: torch.dtype) -> ModuleType:
    """The module whose `forward` and `backward` run a sweep; `backend` is any but "reference".

    Raises:
        InputError: as for `choose`.
    """
    if choose(backend, device, dtype).name == "torch":
        return torch_sweep
    if device.type == "cuda":
        from mdlstm_tk.backends.cuda import launch as cuda_launch  # imports Triton

        return cuda_launch
    from mdlstm_tk.backends.cpu import launch as cpu_launch  # imports Numba

    return cpu_launch


def _fused_obstacle(device: torch.device, dtype: torch.dtype) -> str:
    """What keeps the fused backend from running, or ""."""
    if device.type not in COMPILERS:
        return f"fused kernels are for {' and '.join(COMPILERS)}, and x is on {device.type}"
    if dtype not in FUSED_DTYPES:
        supported = ", ".join(_name(supported) for supported in FUSED_DTYPES)
        return f"fused kernels are for {supported}, and x is {_name(dtype)}"
    return _numba_obstacle() if device.type == "cpu" else _triton_obstacle(device)


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _numba_obstacle() -> str:
    """Why Numba cannot be imported, or ""."""
    try:
        import numba  # noqa: F401
    except ImportError as error:  # not installed, or not compatible with the installed NumPy
        return f"numba cannot be imported ({error})"
    return ""


def _triton_obstacle(device: torch.device) -> str:
    """Why Triton cannot compile for the GPU, or "".

    torch brings Triton along, but not on every system, and Triton needs a C compiler to launch kernels.
    """
    if torch.version.hip is not None:
        return "fused kernels are for NVIDIA GPUs"
    capability = torch.cuda.get_device_capability(device)
    if capability < (7, 0):
        return "Triton needs compute capability 7.0, and the GPU has {}.{}".format(*capability)
    try:
        import triton

        triton.runtime.driver.active.get_current_target()
    except Exception as error:
        return f"Triton does not work here ({str(error).strip().partition(chr(10))[0]})"
    return ""
