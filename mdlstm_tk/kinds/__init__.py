"""Kinds of tasks: what a target is. Each is one class in one file, and nothing else compares its name.

kind       the protocol, `Kind`
measures   measures of classes and numbers, from sums that can be added up over batches and processes
panels     pictures of samples and predictions
grid       numbers at every position
segment    one class at every position
classify   one class for each sample
tag        any number of labels for each sample
regress    numbers for each sample

Texts and densities have packages of their own, which are imported when they are used.
"""

from __future__ import annotations

from functools import cache
from importlib import import_module

from mdlstm_tk.errors import InputError
from mdlstm_tk.kinds.kind import COMMON, NO_KIND, Kind, Labels

__all__ = ["COMMON", "Kind", "Labels", "kind_named", "kind_names", "register_kind"]

BUILT_IN = {name: f"mdlstm_tk.kinds.{name}" for name in ("grid", "classify", "segment", "regress", "tag")}
BUILT_IN |= {"transcribe": "mdlstm_tk.text.transcribe", "baselines": "mdlstm_tk.text.baselines"}
BUILT_IN |= {"density": "mdlstm_tk.density.kind"}
_registered: dict[str, Kind] = {}


def register_kind(kind: Kind) -> Kind:
    """Make a kind known by its name: for `mdlstm train --task`, in runs and in exported files. A second
    registration replaces the first.

    Raises:
        InputError: the name is that of a kind that comes with the package.
    """
    if kind.name in BUILT_IN:
        raise InputError(f"the kind '{kind.name}' comes with the package; choose another name")
    _registered[kind.name] = kind
    return kind


def kind_names() -> tuple[str, ...]:
    """The names of all kinds. Imports none of them."""
    return (*BUILT_IN, *_registered)


def kind_named(name: str | None) -> Kind:
    """A kind of task by its name. For None, and a name that nobody has registered, one without answers,
    whose models return numbers."""
    return _registered.get(name or "") or (_built_in(name) if name in BUILT_IN else NO_KIND)


@cache
def _built_in(name: str) -> Kind:
    kind: Kind = import_module(BUILT_IN[name]).KIND
    return kind
