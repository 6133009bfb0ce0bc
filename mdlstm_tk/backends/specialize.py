"""Kernels are templates: functions some of whose globals each compiled version replaces."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from types import FunctionType
from typing import Any

from mdlstm_tk._util.text import reason_of
from mdlstm_tk.errors import MDLSTMError


class KernelError(MDLSTMError):
    """A kernel cannot be generated or compiled. Other kernels of the process still run."""

    def __init__(self, name: str, error: Exception) -> None:
        reason = reason_of(error)
        super().__init__(
            f"the kernel {name} cannot be compiled ({reason}); backend='torch' runs without it"
        )


@contextmanager
def compiling(name: str) -> Iterator[None]:
    """Raise whatever goes wrong inside as a `KernelError` that names the kernel.

    Code generation fails in as many ways as the versions of Numba, llvmlite, LLVM and Triton differ.
    """
    try:
        yield
    except MDLSTMError:  # the user's mistake, such as a cell that does not exist
        raise
    except Exception as error:
        raise KernelError(name, error) from error


def specialize(template: Any, name: str, **replaced: Any) -> Any:
    """A copy of the function `template`, called `name`, which sees `replaced` in place of its globals.

    Numba and Triton both identify compiled code by the function's name, so `name` must tell apart
    everything that the replaced globals change.

    Raises:
        KeyError: the template has no such global.
    """
    for key in replaced:
        template.__globals__[key]
    function = FunctionType(template.__code__, {**template.__globals__, **replaced}, name)
    function.__annotations__ = template.__annotations__
    function.__qualname__ = name
    return function
