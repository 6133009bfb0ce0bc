"""Every error that mdlstm-tk raises on purpose, and the exit code `mdlstm` ends with.

    MDLSTMError            1  something went wrong while running
    ├── InputError         2  an argument, file or array is not what is needed (also a ValueError)
    ├── ParityError        3  two runtimes disagree by more than the stated tolerance
    ├── DeviceError        4  the device that was asked for cannot be used
    └── MissingExtraError  1  an optional dependency is not installed (also an ImportError)

A message says what was given, what was expected and, where there is one, how to fix it.
"""

from __future__ import annotations

import importlib
from types import ModuleType


class MDLSTMError(Exception):
    """Base of all errors of this package."""

    exit_code = 1


class InputError(MDLSTMError, ValueError):
    """An argument, file or array is not what is needed."""

    exit_code = 2


class ParityError(MDLSTMError):
    """Two runtimes disagree by more than the stated tolerance."""

    exit_code = 3


class DeviceError(MDLSTMError):
    """The device that was asked for cannot be used."""

    exit_code = 4


class MissingExtraError(MDLSTMError, ImportError):
    """An optional dependency is not installed."""


def require(module: str, extra: str) -> ModuleType:
    """Import `module`, or raise `MissingExtraError` naming the command that installs it."""
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        if error.name is None or error.name.split(".")[0] != module.split(".")[0]:
            raise
        from mdlstm_tk.installation import install_command

        raise MissingExtraError(
            f"this needs the package '{module.split('.')[0]}', which is not installed; "
            f"install it with: {install_command([extra])}"
        ) from None
