"""Check values against annotations: the arguments of public functions, and the fields of metadata."""

from __future__ import annotations

import operator
import os
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import suppress
from functools import cache, wraps
from inspect import signature
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, Literal, ParamSpec, TypeVar, Union, get_args, get_origin, get_type_hints

import numpy as np

from mdlstm_tk.errors import InputError

P = ParamSpec("P")
R = TypeVar("R")
WORDS: dict[Any, str] = {bool: "true or false", int: "an integer", float: "a number", str: "a text"}
WORDS |= {NoneType: "None", Path: "a path", Callable: "a function", np.ndarray: "an array"}
WORDS |= {Sequence: "a list", tuple: "a list", Mapping: "a mapping", dict: "an object"}

TAKEN: dict[Any, Any] = dict.fromkeys((Any, np.ndarray, int, float), object)  # what stands for a type
TAKEN |= {bool: bool | np.bool_, Path: os.PathLike, Literal: str}
TAKEN |= {Sequence: Collection, tuple: Collection, dict: Mapping}
BARRED: dict[Any, Any] = {int: bool | np.bool_, float: bool | np.bool_ | str | bytes}  # what does not
BARRED |= {Sequence: str | bytes | Mapping, tuple: str | bytes | Mapping}


def checked(function: Callable[P, R]) -> Callable[P, R]:
    """Check the arguments of a function, when it is called, against their annotations; see `fitting`.

    Raises:
        InputError: a value is of another type; the message names the argument.
    """
    names = list(signature(function).parameters)
    hints = cache(lambda: get_type_hints(function))  # which may name types that are defined below

    def check(name: str, value: Any) -> Any:
        hint = hints().get(name, Any)
        try:
            return fitting(value, hint)
        except TypeError:
            got = " ".join(repr(value).split())
            raise InputError(f"{name} must be {expected(hint)}, got {got:.80}") from None

    @wraps(function)
    def call(*args: P.args, **kwargs: P.kwargs) -> R:
        named: Any = {name: check(name, value) for name, value in kwargs.items()}
        return function(*map(check, names, args), **named)

    return call


def fitting(value: Any, hint: Any) -> Any:
    """A value as an annotation has it: numbers as Python's, the entries of a tuple in a tuple.

    True and False are no numbers, a text is no sequence, and a path is any `os.PathLike`. Arrays are not
    checked.

    Raises:
        TypeError: the value has another type.
    """
    kind, entries = get_origin(hint) or hint, get_args(hint)
    if kind in (Union, UnionType):
        for alternative in entries:
            with suppress(TypeError):
                return fitting(value, alternative)
        raise TypeError
    if not isinstance(value, TAKEN.get(kind, kind)) or isinstance(value, BARRED.get(kind, ())):
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


def expected(hint: Any) -> str:
    """An annotation in words."""
    kind, entries = get_origin(hint) or hint, get_args(hint)
    if kind in (Union, UnionType):
        return " or ".join(map(expected, entries))
    if kind is Literal:
        return f"one of {', '.join(entries)}"
    if kind in (Sequence, tuple, Mapping, dict):
        entry = entries[kind in (Mapping, dict)]
        return WORDS[kind] + ("" if entry is Any else f" (each entry {expected(entry)})")
    return WORDS.get(kind, f"a {getattr(kind, '__name__', kind)}")
