"""Check values against annotations: the arguments of public functions, and the fields of metadata.

NumPy's types are known by their names, as help and completion of the command line do without NumPy.
"""

from __future__ import annotations

import operator
import os
import sys
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import suppress
from functools import cache, wraps
from inspect import Parameter, signature
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, Literal, ParamSpec, TypeVar, Union, get_args, get_origin, get_type_hints

from mdlstm_tk._util.text import one_line
from mdlstm_tk.errors import InputError

P = ParamSpec("P")
R = TypeVar("R")
WORDS: dict[Any, str] = {bool: "true or false", int: "an integer", float: "a number", str: "a text"}
WORDS |= {NoneType: "None", Path: "a path", Callable: "a function"}
WORDS |= {Sequence: "a list", tuple: "a list", Mapping: "a mapping", dict: "an object"}

TAKEN: dict[Any, Any] = dict.fromkeys((Any, int, float), object)  # what stands for a type
TAKEN |= {Path: os.PathLike, Literal: str, Sequence: Collection, tuple: Collection, dict: Mapping}
BARRED: dict[Any, Any] = {float: str | bytes}  # what does not
BARRED |= dict.fromkeys((Sequence, tuple), str | bytes | Mapping | set | frozenset)


def checked(function: Callable[P, R]) -> Callable[P, R]:
    """Check the arguments of a function, when it is called, against their annotations; see `fitting`.

    A last parameter `**options: Unpack[T]`, where the annotations of T are `Annotated[type, default]`,
    stands for a keyword argument for each of them. The function gets all of them. It checks those of
    `**options: Any` itself.

    Raises:
        InputError: a value is of another type; the message names the argument.
    """
    own = signature(function)
    names, defaults = list(own.parameters), dict[str, Any]()
    hints = cache(lambda: get_type_hints(function))  # which may name types that are defined below
    if own.parameters[names[-1]].kind is Parameter.VAR_KEYWORD and hints()[names[-1]] is not Any:
        declared = get_type_hints(get_args(hints().pop(names[-1]))[0], include_extras=True)
        hints().update((name, get_args(hint)[0]) for name, hint in declared.items())
        defaults = {name: get_args(hint)[1] for name, hint in declared.items()}
        options = [
            Parameter(name, Parameter.KEYWORD_ONLY, default=default, annotation=hints()[name])
            for name, default in defaults.items()
        ]
        own = own.replace(parameters=[*(own.parameters[name] for name in names[:-1]), *options])

    def check(name: str, value: Any) -> Any:
        return fit_argument(name, value, hints().get(name, Any))

    @wraps(function)
    def call(*args: P.args, **kwargs: P.kwargs) -> R:
        own.bind(*args, **kwargs)  # which raises Python's own TypeError
        named: Any = {name: check(name, value) for name, value in kwargs.items()}
        return function(*map(check, names, args), **{**defaults, **named})

    call.__signature__ = own  # type: ignore[attr-defined]
    return call


def fit_argument(name: str, value: Any, hint: Any) -> Any:
    """The value of an argument as its annotation has it; see `fitting`.

    Raises:
        InputError: it has another type; the message names the argument.
    """
    try:
        return fitting(value, hint)
    except TypeError:
        raise InputError(f"{name} must be {expected(hint)}, got {one_line(value)}") from None


def fitting(value: Any, hint: Any) -> Any:
    """A value as an annotation has it: numbers as Python's, the entries of a tuple in a tuple.

    True and False are no numbers, a text and a set are no sequences, and a path is any `os.PathLike`, or
    where a text may stand for it, one that is not empty, which `Path` takes for the current folder.
    Arrays are not checked.

    Raises:
        TypeError: the value has another type.
    """
    kind, entries = _parts(hint)
    if kind in (Union, UnionType):
        if Path in entries and isinstance(value, str) and not value:
            raise TypeError
        for alternative in entries:
            with suppress(TypeError):
                return fitting(value, alternative)
        raise TypeError
    if not _stands_for(value, kind):
        raise TypeError
    if kind is int:
        return operator.index(value)
    if kind is float:
        try:
            return float(value)
        except (OverflowError, RuntimeError) as error:  # a number beyond, a tensor of several
            raise TypeError from error
    if kind in (tuple, Sequence):
        fitted = tuple(fitting(entry, entries[0]) for entry in value)
        return fitted if kind is tuple else value
    if kind in (dict, Mapping):
        return {fitting(key, entries[0]): fitting(entry, entries[1]) for key, entry in value.items()}
    if kind is Literal and value not in entries:
        raise TypeError
    return value


def _parts(hint: Any) -> tuple[Any, tuple[Any, ...]]:
    """The type of an annotation, and its entries. An alias of Python 3.12, such as `NDArray` of NumPy 2.5,
    stands for its value."""
    kind, entries = get_origin(hint) or hint, get_args(hint)
    if hasattr(kind, "__value__"):
        return _parts(kind.__value__[entries] if entries else kind.__value__)
    return kind, entries


def _stands_for(value: Any, kind: Any) -> bool:
    """True if a value may be given where a type is expected."""
    cls = type(value)
    is_flag = cls is bool or (cls.__module__, cls.__name__) in (("numpy", "bool"), ("numpy", "bool_"))
    if kind is bool or (kind in (int, float) and is_flag):
        return is_flag and kind is bool
    if _is_array(kind):
        return True
    return isinstance(value, TAKEN.get(kind, kind)) and not isinstance(value, BARRED.get(kind, ()))


def check_unmasked(name: str, value: Any) -> None:
    """Check that no entry of an array, or of lists of arrays, is masked: conversions drop the mask.

    Raises:
        InputError: an entry is masked; the message names the argument.
    """
    for entry in value if isinstance(value, list | tuple) else ():
        check_unmasked(name, entry)
    masked_arrays = sys.modules.get("numpy.ma")  # until it is imported there are none
    if masked_arrays is not None and masked_arrays.is_masked(value):
        raise InputError(f"{name} has masked values; fill them, as {name}.filled(0) does")


def _is_array(kind: Any) -> bool:
    return getattr(kind, "__name__", "") == "ndarray"


def expected(hint: Any) -> str:
    """An annotation in words."""
    kind, entries = _parts(hint)
    if kind in (Union, UnionType):
        return " or ".join(expected(each) for each in entries if not (each is str and Path in entries))
    if kind is Literal:
        return f"one of {', '.join(entries)}"
    if kind in (Sequence, tuple, Mapping, dict):
        entry = entries[kind in (Mapping, dict)]
        return WORDS[kind] + ("" if entry is Any else f" (each entry {expected(entry)})")
    return "an array" if _is_array(kind) else WORDS.get(kind, f"a {getattr(kind, '__name__', kind)}")
