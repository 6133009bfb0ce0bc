"""The exceptions of mdlstm-tk, and the exit codes that `mdlstm` ends with.

    MDLSTMError            1  an operation failed
    ├── InputError         2  an argument, file or array is invalid (also a ValueError)
    ├── ParityError        3  two runtimes disagree by more than the stated tolerance
    ├── DeviceError        4  the requested device cannot be used
    ├── StoppedError       1  a model was stopped at a limit on time or memory, or crashed
    └── MissingExtraError  1  an optional dependency is not installed, or broken (also an ImportError)

Every message is one line that says what was given, what was expected and how to fix it. It keeps the
arguments that it names as data: Python reads `force=True` where the command line says --force.

    raise InputError(f"{path} exists; replace it with ", Argument("force", True))
"""

from __future__ import annotations

import importlib
from collections.abc import Iterator
from contextlib import contextmanager
from types import ModuleType
from typing import Any, Literal, NamedTuple

from mdlstm_tk._util.text import reason_of

Cause = Literal["time", "memory", "crash"]
"""The reasons that stop a model: a limit on time, a limit on memory, or a crash."""


class Argument(NamedTuple):
    """An argument of the library, or a setting of a run, that a message names.

    Attributes:
        name: its name in Python.
        value: what to give, or what was given; None: any value.
    """

    name: str
    value: Any = None

    def __str__(self) -> str:
        value = f'"{self.value}"' if isinstance(self.value, str) else self.value
        return f"{self.name}={'...' if self.value is None else value}"


class Statement(Argument):
    """A statement of Python that stands for an option of the command line: `import FILE` for --import."""

    def __str__(self) -> str:
        return f"{self.name.rstrip('_')} {self.value}"


class Export(NamedTuple):
    """An export that a message advises.

    Attributes:
        run: the run; the default stands for any.
        options: other arguments of `mdlstm_tk.export.export_run`, by name.
    """

    options: dict[str, Any]
    run: str = "RUN"

    def __str__(self) -> str:
        options = "".join(f", {Argument(*option)}" for option in self.options.items())
        return f"mdlstm_tk.export.export_run({self.run!r}{options})"


TILED_EXPORT = Export({"form": "tiles"})  # for grids larger than the memory


class Message(str):
    """One line for people: texts, and the arguments that it names. It stays a `Message` inside of another
    one, in a pickle, and as `str(error)`, but becomes plain text in an f-string.
    """

    parts: tuple[str | Argument | Export, ...]

    def __new__(cls, *parts: object) -> Message:
        flat: list[Any] = []
        for part in parts:
            line = part if isinstance(part, str | Argument | Export) else str(part)
            flat += line.parts if isinstance(line, Message) else [line]
        message = super().__new__(cls, "".join(map(str, flat)))
        message.parts = tuple(flat)
        return message

    def __str__(self) -> str:
        return self

    def __reduce__(self) -> tuple[Any, ...]:
        return Message, self.parts


class MDLSTMError(Exception):
    """Base class of all exceptions of this package.

    Args:
        *parts: of the message: texts, arguments, messages, and other errors.
    """

    exit_code = 1

    def __init__(self, *parts: object) -> None:
        super().__init__(Message(*parts))


class InputError(MDLSTMError, ValueError):
    """An argument, file or array is invalid."""

    exit_code = 2


class ParityError(MDLSTMError):
    """Two runtimes disagree by more than the stated tolerance."""

    exit_code = 3


class DeviceError(MDLSTMError):
    """The requested device cannot be used."""

    exit_code = 4


class StoppedError(MDLSTMError):
    """A model was stopped at a limit on time or memory, or crashed. Other inputs may still run.

    Args:
        message: one line, or another error of this package.
        cause: what stopped it.
    """

    def __init__(self, message: object, cause: Cause = "crash") -> None:
        super().__init__(message)
        self.cause = cause


class MissingExtraError(MDLSTMError, ImportError):
    """An optional dependency is not installed, or cannot be imported."""


PACKAGES = {"PIL": "pillow", "sklearn": "scikit-learn", "skimage": "scikit-image"}
"""The package that a module comes from, where the names differ."""


def require(module: str, extra: str) -> ModuleType:
    """Import a module that belongs to an optional dependency.

    Args:
        module: name of the module, for example "PIL.Image".
        extra: name of the extra of mdlstm-tk that installs it.

    Raises:
        MissingExtraError: the package is not installed, or cannot be imported, for example because a
            library of the system is missing; the message names the command that installs it.
    """
    try:
        return importlib.import_module(module)
    except ImportError as error:
        package = module.split(".")[0]
        if isinstance(error, ModuleNotFoundError) and (error.name or "").split(".")[0] == package:
            raise _missing(package, extra) from None
        raise MissingExtraError(
            f"the package '{PACKAGES.get(package, package)}' cannot be imported ({reason_of(error)}); "
            f"repair it, or install it again with: {install_command(extra)}"
        ) from error


@contextmanager
def imports_of(extra: str) -> Iterator[None]:
    """Import modules that need the packages of an extra inside this `with` statement.

    Args:
        extra: name of the extra of mdlstm-tk.

    Raises:
        MissingExtraError: one of the packages is not installed; see `require`.
    """
    try:
        yield
    except ModuleNotFoundError as error:
        if error.name is None or error.name.split(".")[0] == "mdlstm_tk":
            raise
        raise _missing(error.name, extra) from None


def install_command(*extras: str) -> str:
    """The command that adds extras to an installation, also to one from a clone of the source code.

    >>> install_command("cpu", "train")
    "pip install 'mdlstm-tk[cpu,train]'"
    """
    return f"pip install 'mdlstm-tk[{','.join(extras)}]'" if extras else "pip install mdlstm-tk"


def _missing(module: str, extra: str) -> MissingExtraError:
    package = module.split(".")[0]
    return MissingExtraError(
        f"this needs the package '{PACKAGES.get(package, package)}' of the extra '{extra}', which is not "
        f"installed; install it with: {install_command(extra)}"
    )
