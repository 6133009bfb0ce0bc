"""The ways to compute a sweep, and the choice among them. All give the same numbers.

`torch`  one step per wavefront in plain torch operations, on any torch device.
`cpu`    the whole sweep as one call of code compiled by Numba.
`cuda`   one matrix product by torch and one Triton kernel per wavefront.

The choice is made at every call, from the device of x, since a graph that was captured on one machine may
run on another. The equations of the cells are defined once, in `mdlstm_tk.cells`.
"""

from __future__ import annotations

import importlib
import warnings
from types import FunctionType
from typing import Any, Literal, NamedTuple, Protocol, get_args

from torch import Tensor, version  # not torch or its cuda, whose names are those of modules here
from torch import cuda as torch_cuda
from torch import device as Device

from mdlstm_tk._util.text import reason_of
from mdlstm_tk.backends import torch as torch_engine
from mdlstm_tk.errors import InputError
from mdlstm_tk.inputs import Gradients, SweepInputs, SweepResults

Backend = Literal["auto", "fused", "torch"]
BACKENDS: tuple[str, ...] = get_args(Backend)
COMPILERS = {"cpu": "Numba", "cuda": "Triton"}  # by the type of device
_works = set[Device]()  # where kernels have been compiled


class Engine(Protocol):
    """A backend. float16 and bfloat16 are computed in float32 where sums and states are concerned, and
    rounded on the way out."""

    def forward(self, inputs: SweepInputs, save: bool = False, recompute: bool = False) -> SweepResults:
        """Run the sweep; keep what `backward` needs if `save`, and no gates if `recompute`."""

    def backward(
        self,
        inputs: SweepInputs,
        results: SweepResults,
        grad: Tensor,
        dfinal: Tensor | None,
        wants_dx: bool,
        wants_weights: bool,
    ) -> Gradients:
        """The gradients of all inputs that are there; those of x and of the parameters if they are wanted.

        Args:
            inputs: as for `forward`.
            results: those of `forward` with `save`; `final` is not needed. Gates and states may have more
                rows than the sweep, and gates that are None are computed again.
            grad: (N, *grid, dirs, n) gradient of the output, contiguous.
            dfinal: the gradient of the final states, contiguous, if there are any.
            wants_dx: whether the gradient of x is needed.
            wants_weights: whether that of any parameter is; frozen ones cost no product.
        """


class Choice(NamedTuple):
    """The backend that runs, "fused" or "torch", and why."""

    name: str
    reason: str


def choose(backend: str, device: Device) -> Choice:
    """The backend that `backend` stands for: "auto" is "fused" where that can run, else "torch".

    Raises:
        InputError: "fused" was asked for and cannot run.
    """
    if backend == "torch":
        return Choice("torch", "as asked")
    problem = _problem(device)
    if problem and backend == "fused":
        raise InputError(f"backend='fused' cannot run this: {problem}; use backend='auto'")
    if problem:
        return Choice("torch", problem)
    return Choice("fused", f"compiled by {COMPILERS[device.type]}" if backend == "auto" else "as asked")


def engine(backend: str, device: Device) -> Engine:
    """The module that runs a sweep.

    Raises:
        InputError: as for `choose`.
    """
    name, reason = choose(backend, device)
    if name == "fused":
        return _compiled(device.type)  # type: ignore[no-any-return]
    if backend == "auto" and device.type in COMPILERS:
        warnings.warn(
            f"MDLSTM runs in plain torch operations, which takes several times as long: {reason}; "
            "`mdlstm doctor` checks the installation",
            RuntimeWarning,
            stacklevel=2,
        )
    return torch_engine


def _compiled(kind: str) -> Any:
    """The engine of kernels for a type of device; its `try_compiler` raises if they cannot be compiled."""
    return importlib.import_module(f"mdlstm_tk.backends.{kind}.sweep")


def specialize(template: Any, name: str, **replaced: Any) -> Any:
    """A copy of the function `template`, called `name`, which sees `replaced` in place of its globals.

    Kernels are such templates. Numba and Triton both identify compiled code by the function's name, so
    `name` must tell apart everything that the replaced globals change.
    """
    function = FunctionType(template.__code__, {**template.__globals__, **replaced}, name)
    function.__annotations__ = template.__annotations__
    function.__qualname__ = name
    return function


def _problem(device: Device) -> str:
    """Why compiled kernels cannot run on a device, or nothing. A compiler that failed is tried again."""
    if device in _works:
        return ""
    if device.type not in COMPILERS:
        return f"fused kernels are for CPUs and NVIDIA GPUs, and x is on {device.type}"
    is_cuda = device.type == "cuda"
    if is_cuda and (version.hip is not None or torch_cuda.get_device_capability(device) < (7, 0)):
        return "fused kernels are for NVIDIA GPUs of compute capability 7.0 or more"
    try:
        _compiled(device.type).try_compiler(device)
    except Exception as error:  # a broken or unsupported version raises anything
        return f"{COMPILERS[device.type]} does not work here ({reason_of(error)})"
    _works.add(device)
    return ""
