"""How the verbs read their options: `Verb` and `Root` are the Typer commands of which `mdlstm` consists.

They convert and check option values themselves, in place of Typer, for two reasons. Typer from 0.29 on uses
pydantic for it, whose import takes 0.08 s, half as long as importing NumPy and ONNX Runtime; and Typer does
not suggest the nearest choice. If a future Typer stops calling `process_value`, its own conversion takes
over, which is slower but correct.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable
from functools import partial, wraps
from pathlib import Path
from types import NoneType
from typing import Annotated, Any, Literal, get_args, get_origin

import typer
from typer.core import TyperCommand, TyperGroup
from typer.models import OptionInfo

from mdlstm_tk.cli.console import verbosity
from mdlstm_tk.cli.options import Import
from mdlstm_tk.errors import InputError

MESSAGES = "Messages"
Quiet = Annotated[
    bool, typer.Option("--quiet", "-q", help="Print only errors and data.", rich_help_panel=MESSAGES)
]
Verbose = Annotated[
    bool,
    typer.Option("--verbose", "-v", help="Print more about what is done.", rich_help_panel=MESSAGES),
]
Debug = Annotated[
    bool,
    typer.Option(
        "--debug", help="Print the traceback of an error instead of one line.", rich_help_panel=MESSAGES
    ),
]


def with_verbosity(function: Callable[..., None]) -> Callable[..., None]:
    """Give a verb the options -q, -v, --debug and --import, whose files its callback has run."""

    @wraps(function)
    def call(quiet: bool, verbose: bool, debug: bool, **options: Any) -> None:
        del options["import_"]
        if quiet and verbose:
            raise InputError("-q and -v are mutually exclusive; give one of them")
        verbosity.quiet, verbosity.verbose, verbosity.debug = quiet, verbose, debug
        verbosity.flags = flags
        function(**options)

    keyword = inspect.Parameter.KEYWORD_ONLY
    extra: dict[str, tuple[Any, Any]] = {"quiet": (Quiet, False), "verbose": (Verbose, False)}
    extra |= {"debug": (Debug, False), "import_": (Import, None)}
    parameters = inspect.signature(function, eval_str=True).parameters.values()
    flags = _flags(parameters)
    call.__signature__ = inspect.Signature(  # type: ignore[attr-defined]
        [
            *parameters,
            *(inspect.Parameter(n, keyword, default=d, annotation=a) for n, (a, d) in extra.items()),
        ]
    )
    call.__annotations__ = {p.name: p.annotation for p in parameters} | {
        n: a for n, (a, _) in extra.items()
    }
    return call


def _flags(parameters: Iterable[inspect.Parameter]) -> dict[str, str]:
    """The shortest spelling of each option of a verb, by the name of its parameter: {"output": "-o"}."""
    flags = {}
    for parameter in parameters:
        info = get_args(parameter.annotation)[1:]
        if info and isinstance(info[0], OptionInfo):
            # Typer keeps the first spelling as a default until it has seen that it is in an annotation.
            texts = [str(each) for each in (info[0].default, *(info[0].param_decls or ()))]
            spellings = [text for text in texts if text.startswith("-")]
            spellings = spellings or [f"--{parameter.name.replace('_', '-')}"]
            flags[parameter.name] = min(spellings, key=len)
    return flags


class Verb(TyperCommand):
    """A verb of `mdlstm`."""

    def get_params(self, ctx: Any) -> list[Any]:
        """The parameters, reading their values as `read_value` does."""
        return _with_reader(super().get_params(ctx), self.callback)

    def format_help(self, ctx: Any, formatter: Any) -> None:
        """Print the help; of a verb with --set also the table of settings."""
        super().format_help(ctx, formatter)
        if any("--set" in param.opts for param in self.params):
            from mdlstm_tk.cli.settings import print_settings

            print_settings()


class Root(TyperGroup):
    """`mdlstm` itself."""

    def get_params(self, ctx: Any) -> list[Any]:
        """The parameters, reading their values as `read_value` does."""
        return _with_reader(super().get_params(ctx), self.callback)


def _with_reader(params: list[Any], callback: Callable[..., Any] | None) -> list[Any]:
    declared = inspect.signature(callback, eval_str=True).parameters if callback else {}
    for param in params:
        annotation = declared[param.name].annotation if param.name in declared else bool
        param.process_value = partial(read_value, param, annotation)
    return params


def read_value(param: Any, annotation: Any, ctx: Any, value: Any) -> Any:
    """Convert what was given for a parameter to its type; takes the place of `Parameter.process_value`.

    Args:
        param: the parameter, as Typer made it.
        annotation: of the parameter in the verb: Annotated[type, typer.Option(...)].
        ctx: the context of the call.
        value: a text, several texts for a repeatable option, True for a flag, None if nothing was given.

    Raises:
        InputError: the value is missing, of another type, out of range, or not one of the choices.
    """
    label = max(param.opts, key=len) if param.param_type_name == "option" else param.metavar or param.name
    kind, info = get_args(annotation) if get_origin(annotation) is Annotated else (annotation, None)
    kinds = [each for each in get_args(kind) if each is not NoneType]
    if NoneType in get_args(kind):
        (kind,) = kinds
    if value in (None, ()):
        if param.required and not ctx.resilient_parsing:
            verb = ctx.command_path
            raise InputError(f"{label} is missing (see: {verb} --help)")
    elif get_origin(kind) is list:
        value = [_convert(text, get_args(kind)[0], info, label) for text in value]
    else:
        value = _convert(value, kind, info, label)
    return value if param.callback is None else param.callback(ctx, param, value)


def _convert(value: Any, kind: Any, info: Any, label: str) -> Any:
    if info is None or not isinstance(value, str):  # Typer's own option, a flag, or a default
        return value
    try:
        if info.parser is not None:
            return info.parser(value)
        if get_origin(kind) is Literal:
            return one_of(value, get_args(kind))
    except InputError as error:
        raise InputError(f"{label}: {error}") from None
    if kind not in (int, float):
        return Path(value) if kind is Path else value
    try:
        number = kind(value)
    except ValueError:
        expected = "a whole number" if kind is int else "a number"
        raise InputError(f"{label} must be {expected}, got '{value}'") from None
    if info.min is not None and not number >= info.min:  # "not" also refuses NaN
        raise InputError(f"{label} must be at least {info.min}, got {value}")
    return number


def one_of(value: str, choices: tuple[str, ...]) -> str:
    """Return the value if it is one of the choices.

    Raises:
        InputError: it is not; names the nearest choice, or all of them.
    """
    if value in choices:
        return value
    from mdlstm_tk.training.config import suggest

    raise InputError(f"unknown value '{value}'; {suggest(value, choices)}")
