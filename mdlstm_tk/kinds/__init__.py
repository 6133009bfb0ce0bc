"""Kinds of tasks. A kind is one object that is asked; nothing else compares its name.

training        the questions that training asks a kind
grid            numbers at every position
classify        one class for each sample
segment         one class at every position

The kind `transcribe` has a room of its own, `mdlstm_tk.text`, and so has `density`, `mdlstm_tk.density`.
"""

from __future__ import annotations

from functools import cache
from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from mdlstm_tk.kinds.training import TrainingKind

MODULES = {  # by the name of the kind: the module whose TRAINING answers
    "grid": "mdlstm_tk.kinds.grid",
    "classify": "mdlstm_tk.kinds.classify",
    "segment": "mdlstm_tk.kinds.segment",
    "transcribe": "mdlstm_tk.text.kind",
    "density": "mdlstm_tk.density.kind",
}


@cache
def training_of(kind: str) -> TrainingKind:
    """The object that answers for a kind of task."""
    training: TrainingKind = import_module(MODULES[kind]).TRAINING
    return training
