"""The options of an inference that kinds declare: arguments of `infer_paths` and `decode`, and flags."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from inspect import signature
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mdlstm_tk._util.checks import fit_argument
from mdlstm_tk.errors import Argument, InputError
from mdlstm_tk.kinds import all_kinds
from mdlstm_tk.kinds.rooms import load
from mdlstm_tk.runtime.io import Format

if TYPE_CHECKING:
    from mdlstm_tk.kinds.kind import Kind

OF_COMMAND_LINE = ("files", "import_", "quiet", "verbose", "debug", "help")
"""Options of `mdlstm infer` that are no arguments of `infer_paths`."""


@dataclass(frozen=True)
class Option:
    """An option of a kind.

    Attributes:
        name: of the keyword argument, and of the flag.
        formats: those of results in which it shows.
        help: its meaning, for the command line.
        type: of its value: int, float, str or Path, for which a text may stand.
        metavar: the word for a value in the help.
        default: the value that counts if none is given, in words; "" if there is none.
        least: the lowest number.
        place: a class whose objects Python takes, too, or its "module:attribute" below `mdlstm_tk`.
        of_documents: it changes what is made of documents alone.
    """

    name: str
    formats: tuple[Format, ...]
    help: str
    type: type = int
    metavar: str = "N"
    default: str = ""
    least: float = 1
    place: str | Callable[..., Any] = ""
    of_documents: bool = False

    def fit(self, value: Any) -> Any:
        """A value, checked.

        Raises:
            InputError: it is of another type, or too low.
        """
        hint: Any = str | Path if self.type is Path else self.type
        value = fit_argument(self.name, value, (hint | load(self.place) if self.place else hint) | None)
        if isinstance(value, int | float) and value < self.least:
            raise InputError(Argument(self.name, value), f" is out of range; give at least {self.least}")
        return value


def check_options(kind: Kind) -> None:
    """Check that the options of a new kind can stand beside those of the others.

    Raises:
        InputError: the name of one is no word or has a meaning already, or another kind declares it with
            another type, default or help. Their formats may differ.
    """
    from mdlstm_tk.runtime import decode, infer_paths  # imported late: few kinds are new

    taken = {*signature(infer_paths).parameters, *signature(decode).parameters, *OF_COMMAND_LINE}
    declared = {option.name: (each, option) for each in all_kinds() for option in each.options}
    for option in kind.options:
        name = f"the option {option.name!r} of kind {kind.name}"
        if option.name in taken or not option.name.isidentifier():
            raise InputError(f"register_kind takes another name for {name}, which is taken or no word")
        other, known = declared.get(option.name, (kind, option))
        if other.name != kind.name and replace(known, formats=option.formats) != option:
            raise InputError(
                f"register_kind takes another name for {name}, which kind {other.name} declares otherwise"
            )


def fit_options(function: str, values: Mapping[str, Any]) -> dict[str, Any]:
    """Check the further keyword arguments of a function, which are options of kinds. Those that are None
    are left out.

    Raises:
        TypeError: no kind has such an option, in Python's own words.
        InputError: a value is of another type, or too low; the message names the argument.
    """
    options = {option.name: option for kind in all_kinds() for option in kind.options}
    for name in values.keys() - options.keys():
        raise TypeError(f"{function}() got an unexpected keyword argument '{name}'")
    return {name: options[name].fit(value) for name, value in values.items() if value is not None}
