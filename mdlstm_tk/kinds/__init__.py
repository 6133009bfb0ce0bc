"""Kinds of tasks. A kind is one object that is asked; nothing else compares its name.

kind            the questions that exports and inference ask a kind
training_kind   those that training asks it
answer          the answer for a sample, and how documents hold it
sums            sums over the valid positions of a batch, for losses and errors
grid            numbers at every position; its half for training is grid_training
classify        one class for each sample; classify_training
segment         one class at every position; segment_training

The kind `transcribe` has a room of its own, `mdlstm_tk.text`, and so has `density`, `mdlstm_tk.density`.
"""

from __future__ import annotations

from functools import cache
from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from mdlstm_tk.kinds.kind import Kind
    from mdlstm_tk.kinds.training_kind import TrainingKind

MODULES = {  # by the name of a kind: the module whose KIND it is
    "grid": "mdlstm_tk.kinds.grid",
    "classify": "mdlstm_tk.kinds.classify",
    "segment": "mdlstm_tk.kinds.segment",
    "transcribe": "mdlstm_tk.text.kind",
    "density": "mdlstm_tk.density.kind",
}


@cache
def kind_named(name: str | None) -> Kind:
    """A kind of task by its name. None, and a name that nobody has registered: numbers."""
    kind: Kind = import_module(MODULES.get(name or "", "mdlstm_tk.kinds.kind")).KIND
    return kind


def all_kinds() -> list[Kind]:
    """All registered kinds."""
    return [kind_named(name) for name in MODULES]


def training_of(name: str) -> TrainingKind:
    """The half of a kind that training asks."""
    return kind_named(name).training
