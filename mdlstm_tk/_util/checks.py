"""Check the arguments of public functions against their annotations. Imports neither torch nor onnx."""

from __future__ import annotations

import operator
import os
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import suppress
from functools import cache, wraps
from inspect import Parameter, signature
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, Literal, ParamSpec, TypeVar, Union, get_args, get_origin, get_type_hints

import numpy as np

from mdlstm_tk.errors import InputError

P = ParamSpec("P")
R = TypeVar("R")
WORDS: dict[Any, str] = {bool: "True or False", int: "an integer", float: "a number", str: "a text"}
WORDS |= {NoneType: "None", Path: "a path", Mapping: "a mapping", Callable: "a function"}


def checked(function: Callable[P, R]) -> Callable[P, R]:
    """Check the types of a function's arguments when it is called, by its annotations.

    Integers and numbers may be those of NumPy, and reach the function as Python's; True and False are
    neither. A path is any `os.PathLike`, a sequence anything with entries but a text, and an array is left
    to the function. A call that lacks an argument raises what Python raises.

    Raises:
        InputError: a value is of another type; the message names the argument.
    """
    parameters = signature(function).parameters.values()
    names = [p.name for p in parameters if p.kind not in (Parameter.VAR_POSITIONAL, Parameter.VAR_KEYWORD)]
    hints = cache(lambda: get_type_hints(function))  # a module may name types that it defines below

    @wraps(function)
    def call(*args: P.args, **kwargs: P.kwargs) -> R:
        def fitting(name: str, value: Any) -> Any:
            hint = hints().get(name, Any)
            try:
                return _fitting(value, hint)
            except TypeError:
                got = " ".join(repr(value).split())
                raise InputError(f"{name} must be {_expected(hint)}, got {got:.80}") from None

        values = [fitting(name, value) for name, value in zip(names, args, strict=False)]
        named = {name: fitting(name, value) for name, value in kwargs.items()}
        return function(*values, *args[len(values) :], **named)  # type: ignore[arg-type]

    return call


def _fitting(value: Any, hint: Any) -> Any:
    """The value as an annotation has it; a TypeError if it has another type."""
    kind, entries = get_origin(hint) or hint, get_args(hint)
    if kind in (Union, UnionType):
        for alternative in entries:
            with suppress(TypeError):
                return _fitting(value, alternative)
        raise TypeError
    if kind in (Any, np.ndarray):
        return value
    if kind is Literal:
        fits = isinstance(value, str) and value in entries
    elif kind in (int, float):
        fits = not isinstance(value, bool | np.bool_ | str | bytes)
        if fits:
            with suppress(ValueError, RuntimeError):  # an array or a tensor of several numbers
                return operator.index(value) if kind is int else float(value)
            fits = False
    elif kind in (Sequence, tuple):
        fits = isinstance(value, Collection) and not isinstance(value, str | bytes | Mapping)
        for entry in value if fits else ():
            _fitting(entry, entries[0])
    else:
        fits = isinstance(value, {Path: os.PathLike, bool: bool | np.bool_}.get(kind, kind))
        for pair in value.items() if fits and kind is Mapping else ():
            list(map(_fitting, pair, entries))
    if not fits:
        raise TypeError
    return value


def _expected(hint: Any) -> str:
    """An annotation in words."""
    kind, entries = get_origin(hint) or hint, get_args(hint)
    if kind in (Union, UnionType):
        return " or ".join(map(_expected, entries))
    if kind is Literal:
        return f"one of {', '.join(entries)}"
    if kind in (Sequence, tuple):
        return f"a sequence (each entry {_expected(entries[0])})"
    return WORDS.get(kind, f"a {getattr(kind, '__name__', kind)}")
