"""The targets of a user's data, as their kind makes them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from mdlstm_tk._util.text_order import Direction
from mdlstm_tk.data.masks import MaskClasses
from mdlstm_tk.io.images import Preprocessing


class TargetOptions(NamedTuple):
    """The options of a user's data that targets depend on.

    Attributes:
        preprocessing: of images; None for arrays.
        mask_names: names of the values 0, 1, … of masks.
        settings: of the run, by key of `TrainConfig`.
        trained: how many of the targets, the first ones, are of the training split.
    """

    preprocessing: Preprocessing | None
    mask_names: Sequence[str]
    settings: Mapping[str, Any]
    trained: int


@dataclass(frozen=True)
class Targets:
    """The targets of all samples.

    Attributes:
        outputs: outputs of the network.
        encode: makes the target of a sample, see `Batch.y`, from what `RawSample.read_y` returned; can be
            pickled.
        lines: notes for the user, one line each.
        classes: names of the classes, or the characters.
        masks: the classes of masks.
        direction: of texts.
    """

    outputs: int
    encode: Callable[[Any], Any]
    lines: Sequence[str] = ()
    classes: tuple[str, ...] = ()
    masks: MaskClasses | None = None
    direction: Direction | None = None


def unchanged(value: Any) -> Any:
    """The encoding of targets that are used as they are."""
    return value
