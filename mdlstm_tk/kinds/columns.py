"""Kinds of tasks whose target is a number in each of several named columns, for each sample."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import inf
from typing import Any, ClassVar

import numpy as np

from mdlstm_tk.data.spec import Array, Batch, Extents, TaskSpec
from mdlstm_tk.errors import InputError
from mdlstm_tk.kinds.training_kind import TargetRule, TrainingKind

Target = dict[str, float]  # number by column


class ColumnsKind(TrainingKind):
    """Base of such kinds.

    Attributes:
        bounds: the lowest and the highest number.
    """

    has_named_columns = True
    bounds: ClassVar[tuple[float, float]] = (-inf, inf)

    def target_axes(self, ndim: int) -> tuple[int, ...]:
        return (1, 2)

    def read_array(self, y: Array, index: int, extents: Extents, names: Sequence[str]) -> Target:
        return dict(zip(names, np.atleast_1d(y[index]).tolist(), strict=True))

    def survey(self, target: Target, survey_numbers: Callable[[Array], Any]) -> tuple[Any, Any]:
        return target, sorted(target.items())

    def collate(self, x: Array, targets: Sequence[Any], pad: Callable[..., Array]) -> Array:
        if len(shapes := {np.shape(target) for target in targets}) > 1:
            differing = " and ".join(map(str, sorted(shapes)))
            raise InputError(f"targets of one batch have the shapes {differing}, expected equal ones")
        return np.array(targets, np.float32)

    def rule(self, batch: Batch, spec: TaskSpec) -> TargetRule:
        shape = len(batch.x), spec.outputs
        return TargetRule(np.floating, shape, shape, *self.bounds)


def check_names(names: Sequence[str], reserved: Sequence[str] = ()) -> None:
    """Check the names of columns.

    Args:
        names: of the columns.
        reserved: of the columns that tables of answers have in any case.

    Raises:
        InputError: one is empty or reserved.
    """
    if wrong := [name for name in names if name in ("", *reserved)]:
        raise InputError(f"a column is called {wrong[0]!r}, which stands for something else; rename it")


def encode(names: Sequence[str], target: Target) -> tuple[float, ...]:
    """The numbers of a target, in the order of the columns; 0 in those that it lacks."""
    return tuple(float(target.get(name, 0)) for name in names)
