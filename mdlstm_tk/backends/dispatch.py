"""The choice among backends, and its reason.

It is made at every call of the operator, from the device and dtype of x, since a graph that was captured on
one machine may run on another.
"""

from __future__ import annotations

import warnings
from functools import cache
from typing import Literal, NamedTuple, get_args

import torch

from mdlstm_tk._util import arguments
from mdlstm_tk._util.text import reason_of
from mdlstm_tk.backends.inputs import Engine
from mdlstm_tk.backends.torch import sweep as torch_sweep
from mdlstm_tk.errors import InputError, MDLSTMError

Backend = Literal["auto", "fused", "torch", "reference"]
BACKENDS: tuple[str, ...] = get_args(Backend)
OPERATOR_BACKENDS = ("auto", "fused", "torch")  # the reference runs in plain autograd, not in the operator
COMPILERS = {"cpu": "compiled by Numba for the CPU", "cuda": "compiled by Triton for the GPU"}


class Choice(NamedTuple):
    """The backend that runs ("fused", "torch" or "reference"), and why."""

    name: str
    reason: str


@cache
def choose(backend: str, device: torch.device, dtype: torch.dtype) -> Choice:
    """The backend that `backend` stands for: "auto" is "fused" where that can run, else "torch".

    Raises:
        InputError: there is no such backend, no backend computes in the dtype, or "fused" was asked for and
            cannot run.
    """
    arguments.check_dtype(dtype, "the dtype of x")
    if arguments.choice("backend", backend, BACKENDS) in ("torch", "reference"):
        return Choice(backend, "as asked")
    obstacle = _unsupported(device) or _failure(device)
    if not obstacle:
        return Choice("fused", COMPILERS[device.type] if backend == "auto" else "as asked")
    if backend == "fused":
        raise InputError(f"backend='fused' cannot run this: {obstacle}; use backend='auto'")
    return Choice("torch", obstacle)


@cache
def engine(backend: str, device: torch.device, dtype: torch.dtype) -> Engine:
    """The module that runs a sweep; `backend` is one of `OPERATOR_BACKENDS`.

    It warns once if "auto" becomes "torch" only because no kernel can be compiled.

    Raises:
        InputError: as for `choose`.
    """
    choice = choose(arguments.choice("backend", backend, OPERATOR_BACKENDS), device, dtype)
    if choice.name == "torch":
        if backend == "auto" and not _unsupported(device) and _failure(device):
            warnings.warn(
                f"MDLSTM runs on {device} with backend 'torch', which takes several times as long as "
                f"'fused': {choice.reason}; `mdlstm doctor` checks the installation",
                RuntimeWarning,
                stacklevel=2,
            )
        return torch_sweep
    if device.type == "cuda":
        from mdlstm_tk.backends.cuda import sweep as cuda_sweep  # imports Triton

        return cuda_sweep
    from mdlstm_tk.backends.cpu import sweep as cpu_sweep  # imports Numba

    return cpu_sweep


def _unsupported(device: torch.device) -> str:
    """Why there are no fused kernels for a device, or ""."""
    if device.type not in COMPILERS:
        return f"fused kernels are for {' and '.join(COMPILERS)}, and x is on {device.type}"
    if device.type == "cuda":
        if torch.version.hip is not None:
            return "fused kernels are for NVIDIA GPUs"
        capability = torch.cuda.get_device_capability(device)
        if capability < (7, 0):
            return "Triton needs compute capability 7.0, and the GPU has {}.{}".format(*capability)
    return ""


@cache
def _failure(device: torch.device) -> str:
    """Why no kernel for a device can be compiled, or ""; tried once."""
    try:
        _try_compiler(device)
    except Exception as error:  # a broken or unsupported version raises anything
        name = "Numba" if device.type == "cpu" else "Triton"
        return f"{name} does not work here ({reason_of(error.__cause__ or error)})"
    return ""


def _try_compiler(device: torch.device) -> None:
    """Check that kernels for a device can be compiled, with one that every sweep needs anyway.

    torch brings Triton along, but not on every system, and Triton needs a C compiler to launch kernels.

    Raises:
        Exception: of any kind; they cannot be compiled.
    """
    if device.type == "cuda":
        import triton

        with torch.cuda.device(device):
            triton.runtime.driver.active.get_current_target()
        return
    import numba

    if numba.config.DISABLE_JIT:
        raise MDLSTMError("the environment variable NUMBA_DISABLE_JIT is set, unset it")
    from mdlstm_tk.backends.cpu import sweep as cpu_sweep

    cpu_sweep.try_compiler()
