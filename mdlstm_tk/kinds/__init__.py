"""Kinds of tasks. A kind is one object that is asked; nothing else compares its name.

kind            the questions that exports and inference ask a kind
training_kind   those that training asks it
report_kind     those that pictures and reports ask it
answer          the answer for a sample, and how documents hold it
measures        measures of classes and of numbers, from sums over all samples
examples        the choice of samples that represent a data set
decoding        numbers by which outputs become answers, chosen by training
sums            sums over the valid positions of a batch, for losses and errors
options         options of an inference that kinds declare
documents       files that hold several samples, such as pages of text
rooms           packages that add kinds, tasks, networks, settings and verbs: applications as a whole
grid            numbers at every position; its half for training is grid_training
classify        one class for each sample; classify_training
segment         one class at every position; segment_training
regress         numbers for each sample; regress_training
tag             any number of labels for each sample; tag_training
classes         base of classify and segment: one class
columns         base of regress and tag: numbers in named columns

Further kinds have rooms of their own.
"""

from __future__ import annotations

import os
from functools import cache
from typing import TYPE_CHECKING

from mdlstm_tk._util.lazy import lazy_names
from mdlstm_tk.errors import InputError
from mdlstm_tk.kinds.rooms import load, of_rooms

if TYPE_CHECKING:
    from mdlstm_tk.kinds.answer import Answer as Answer
    from mdlstm_tk.kinds.documents import Documents as Documents
    from mdlstm_tk.kinds.kind import ARRAYS as ARRAYS
    from mdlstm_tk.kinds.kind import LINES as LINES
    from mdlstm_tk.kinds.kind import Kind as Kind
    from mdlstm_tk.kinds.options import Option as Option
    from mdlstm_tk.kinds.training_kind import COMMON_DEFAULTS as COMMON_DEFAULTS
    from mdlstm_tk.kinds.training_kind import Sums as Sums
    from mdlstm_tk.kinds.training_kind import TargetRule as TargetRule
    from mdlstm_tk.kinds.training_kind import TrainingKind as TrainingKind

_names, __getattr__, __dir__ = lazy_names(
    __name__,
    {
        "answer": ("Answer",),
        "documents": ("Documents",),
        "kind": ("ARRAYS", "LINES", "Kind"),
        "options": ("Option",),
        "training_kind": ("COMMON_DEFAULTS", "Sums", "TargetRule", "TrainingKind"),
    },
)
__all__ = [*_names, "all_kinds", "kind_named", "kind_names", "register_kind", "training_of"]

BUILT_IN = {
    "grid": "kinds.grid:KIND",
    "classify": "kinds.classify:KIND",
    "segment": "kinds.segment:KIND",
    "regress": "kinds.regress:KIND",
    "tag": "kinds.tag:KIND",
}
_registered: dict[str, Kind] = {}


@cache
def _places() -> dict[str, str]:
    """The kinds that come with the package, loaded when they are used. Importing this package needs no
    `room.py`, which imports it."""
    return BUILT_IN | of_rooms("kinds")


def register_kind(kind: Kind) -> Kind:
    """Make a kind of task known by its name: for `mdlstm train --task`, in runs and in exported files. A
    second registration replaces the first.

    Raises:
        InputError: the name is that of a kind that comes with the package, or no word; or an option of the
            kind does not go with those of other kinds.
    """
    if kind.name in _places() or not kind.name.isidentifier():
        raise InputError(f"register_kind takes a kind with a name of its own, got {kind.name!r}")
    if kind.options:
        from mdlstm_tk.kinds.options import check_options  # imported late: it imports this

        check_options(kind)
    _registered[kind.name] = kind
    return kind


def kind_names() -> tuple[str, ...]:
    """The names of all kinds. Imports none of them."""
    return (*_places(), *_registered)


def kind_named(name: str | None) -> Kind:
    """A kind of task by its name. For None, and a name that nobody has registered, one without answers,
    whose models return numbers."""
    if name in _registered:
        return _registered[name]
    return _built_in(name if name in _places() else None)


@cache
def _built_in(name: str | None) -> Kind:
    kind: Kind = load(_places()[name] if name else "kinds.kind:KIND")
    return kind


def all_kinds() -> list[Kind]:
    """All registered kinds."""
    return list(map(kind_named, kind_names()))


def all_documents() -> list[Documents]:
    """The documents of all kinds that have some."""
    documents = (kind.documents for kind in all_kinds() if kind.documents is not None)
    return list(dict.fromkeys(documents))  # several kinds may read the same


def documents_of(path: str | os.PathLike[str]) -> Documents | None:
    """The documents that a file may be one of, by its suffix; None if it holds samples."""
    from mdlstm_tk.runtime.io import suffix_of  # imported late: it asks for the rooms, which import this

    suffix = suffix_of(path)
    return next((each for each in all_documents() if each.suffix == suffix), None)


def training_of(name: str) -> TrainingKind:
    """The half of a kind that training asks."""
    return kind_named(name).training
