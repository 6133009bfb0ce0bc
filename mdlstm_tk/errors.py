"""The exceptions of mdlstm-tk, each with the exit code that `mdlstm` ends with.

    MDLSTMError            1  an operation failed
    ├── InputError         2  an argument, file or array is invalid (also a ValueError)
    ├── ParityError        3  two runtimes disagree by more than the stated tolerance
    ├── DeviceError        4  the requested device cannot be used
    └── MissingExtraError  1  an optional package is not installed (also an ImportError)

A message is one line. It names an argument as Python has it, and the flag of the command line in brackets.
"""

from __future__ import annotations

import importlib
from types import ModuleType


class MDLSTMError(Exception):
    """Base class of all exceptions of this package."""

    exit_code = 1


class InputError(MDLSTMError, ValueError):
    """An argument, file or array is invalid."""

    exit_code = 2


class ParityError(MDLSTMError):
    """Two runtimes disagree by more than the stated tolerance."""

    exit_code = 3


class DeviceError(MDLSTMError):
    """The requested device cannot be used."""

    exit_code = 4


class MissingExtraError(MDLSTMError, ImportError):
    """An optional package is not installed, or cannot be imported."""


def require(module: str, extra: str) -> ModuleType:
    """Import a module that needs a package of an extra.

    Raises:
        MissingExtraError: the package is missing or broken; the message names the command for it.
    """
    try:
        return importlib.import_module(module)
    except ImportError as error:
        package = (error.name or module).split(".")[0]
        if package == "mdlstm_tk":
            raise
        raise MissingExtraError(
            f"this needs the package {package} ({error}); install it with: pip install 'mdlstm-tk[{extra}]'"
        ) from error
