"""Kinds of tasks. A kind is one object that is asked; nothing else compares its name.

kind            the questions that exports and inference ask a kind, and grid: numbers at every position
training_kind   those that training asks it; grid_training answers them for grid
report_kind     those that pictures and reports ask it
measures        measures of classes and of numbers, from sums over all samples
examples        the choice of samples that represent a data set
decoding        numbers by which outputs become answers, chosen by training
sums            sums over the valid positions of a batch, for losses and errors
classify        one class for each sample; classify_training
segment         one class at every position; segment_training
regress         numbers for each sample; regress_training
tag             any number of labels for each sample; tag_training
classes         base of classify and segment: one class
columns         base of regress and tag: numbers in named columns

Texts and densities have packages of their own, which are imported when they are used.
"""

from __future__ import annotations

from functools import cache
from importlib import import_module
from typing import TYPE_CHECKING

from mdlstm_tk._util.lazy import lazy_names
from mdlstm_tk.errors import InputError

if TYPE_CHECKING:
    from mdlstm_tk.kinds.kind import Kind as Kind
    from mdlstm_tk.kinds.training_kind import COMMON_DEFAULTS as COMMON_DEFAULTS
    from mdlstm_tk.kinds.training_kind import Sums as Sums
    from mdlstm_tk.kinds.training_kind import TargetRule as TargetRule
    from mdlstm_tk.kinds.training_kind import TrainingKind as TrainingKind

_names, __getattr__, __dir__ = lazy_names(
    __name__,
    {"kind": ("Kind",), "training_kind": ("COMMON_DEFAULTS", "Sums", "TargetRule", "TrainingKind")},
)
__all__ = [*_names, "kind_named", "kind_names", "register_kind", "training_of"]

BUILT_IN = {"grid": "mdlstm_tk.kinds.kind"}
BUILT_IN |= {name: f"mdlstm_tk.kinds.{name}" for name in ("classify", "segment", "regress", "tag")}
BUILT_IN |= {"transcribe": "mdlstm_tk.text.transcribe", "baselines": "mdlstm_tk.text.baselines"}
BUILT_IN |= {"density": "mdlstm_tk.density.kind"}
_registered: dict[str, Kind] = {}


def register_kind(kind: Kind) -> Kind:
    """Make a kind of task known by its name: for `mdlstm train --task`, in runs and in exported files. A
    second registration replaces the first.

    Raises:
        InputError: the name is that of a kind that comes with the package, or no word.
    """
    if kind.name in BUILT_IN or not kind.name.isidentifier():
        raise InputError(f"register_kind takes a kind with a name of its own, got {kind.name!r}")
    _registered[kind.name] = kind
    return kind


def kind_names() -> tuple[str, ...]:
    """The names of all kinds. Imports none of them."""
    return (*BUILT_IN, *_registered)


def kind_named(name: str | None) -> Kind:
    """A kind of task by its name. For None, and a name that nobody has registered, one without answers,
    whose models return numbers."""
    return _registered.get(name or "") or _built_in(name if name in BUILT_IN else None)


@cache
def _built_in(name: str | None) -> Kind:
    module = import_module(BUILT_IN[name or "grid"])
    kind: Kind = module.KIND if name else module.NO_KIND
    return kind


def training_of(name: str) -> TrainingKind:
    """The half of a kind that training asks."""
    return kind_named(name).training
