"""The targets of a user's data: how many outputs they need, which classes there are, and their encoding."""

from __future__ import annotations

import unicodedata
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from mdlstm_tk._util.text import counted
from mdlstm_tk.data.masks import UNKNOWN_VALUE, MaskClasses
from mdlstm_tk.data.spec import Kind
from mdlstm_tk.errors import Argument, InputError, Message
from mdlstm_tk.runtime.preprocessing import Preprocessing
from mdlstm_tk.runtime.text_order import Direction, is_right_to_left, reorder

# Marks that no image shows: byte order, and the direction of what follows. The order of a text is found
# without them.
INVISIBLE = dict.fromkeys(
    map(ord, "\ufeff\u061c\u200e\u200f\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069")
)


@dataclass(frozen=True)
class Targets:
    """The targets of all samples.

    Attributes:
        outputs: outputs of the network.
        encode: makes the target of a sample, see `Batch.y`, from what `RawSample.read_y` returned; can be
            pickled.
        lines: notes for the user, one line each.
        classes: names of the classes, or the characters.
        masks: the classes of masks, of kind "segment".
        direction: of texts.
    """

    outputs: int
    encode: Callable[[Any], Any]
    lines: Sequence[str] = ()
    classes: tuple[str, ...] = ()
    masks: MaskClasses | None = None
    direction: Direction | None = None


def fit_targets(
    kind: Kind,
    targets: Sequence[Any],
    preprocessing: Preprocessing | None,
    mask_names: Sequence[str],
    levels: int,
) -> Targets:
    """Determine outputs, classes and encoding from the targets of all samples.

    Args:
        kind: kind of the task.
        targets: `Survey.target` of all samples, those for validation and testing included.
        preprocessing: of images; None for arrays.
        mask_names: names of the values 0, 1, … of masks.
        levels: levels of each channel, of kind "density".

    Raises:
        InputError: there are fewer than two classes, or the targets do not fit each other.
    """
    if kind == "grid":
        channels = {target.channels for target in targets}
        outputs = max(channels)
        if preprocessing is None and len(channels) > 1:
            raise InputError(
                f"y has {counted(min(channels), 'channel')} in one split and {outputs} in another"
            )
        return Targets(
            outputs, Preprocessing(outputs, preprocessing.resize) if preprocessing else _unchanged
        )
    if kind == "density":
        level_names = "2 levels, as 0 or 1" if levels == 2 else f"{levels} levels"
        text = f"each value counts as the nearest of {level_names}; choose others with "
        return Targets(levels if levels > 2 else 1, _unchanged, [Message(text, Argument("levels"))])
    if kind == "transcribe":
        return _fit_texts(targets)
    if kind == "classify":
        classes = tuple(sorted(set(targets), key=_natural_order))
        if len(classes) < 2:
            raise InputError(f"all samples have the class '{classes[0]}', but there must be two or more")
        counts = Counter(targets)
        listing = ", ".join(f"{name} ({counts[name]})" for name in classes)
        found = counted(len(classes), "class", "classes")
        return Targets(len(classes), classes.index, [f"{found}: {listing}"], classes)
    masks = MaskClasses.of(targets)
    names = masks.names(mask_names)
    lines = [f"{counted(len(names), 'class', 'classes')} per position: {', '.join(names)}"]
    if masks.has_unknown:
        lines.append(
            f"mask pixels of value {UNKNOWN_VALUE} are of unknown class and left out; "
            "if it is a class, store it as another value"
        )
    return Targets(len(names), partial(masks.encode, preprocessing=preprocessing), lines, names, masks)


def normalise(text: str) -> str:
    """Return a text in Unicode's composed form (NFC), without marks of direction."""
    return unicodedata.normalize("NFC", text).translate(INVISIBLE)


def _fit_texts(texts: Sequence[str]) -> Targets:
    normal = [normalise(text) for text in texts]
    direction: Direction = "rtl" if is_right_to_left("".join(normal)) else "ltr"
    visual = [reorder(text, direction) for text in normal]
    characters = {character: k for k, character in enumerate(sorted(set("".join(visual))), 1)}
    lengths = [len(text) for text in visual]
    lines = [
        f"texts of {min(lengths)} to {counted(max(lengths), 'character')} from {len(characters)}: "
        f"{''.join(characters)}"
    ]
    if count := sum(a != b for a, b in zip(texts, normal, strict=True)):
        lines.append(
            f"{counted(count, 'text was', 'texts were')} normalised: characters composed (NFC), marks of "
            "direction left out"
        )
    if count := sum(a != b for a, b in zip(normal, visual, strict=True)):
        lines.append(
            f"{counted(count, 'text runs', 'texts run')} from right to left or in part; models return them "
            "in the order of reading"
        )

    encode = partial(_encode_text, characters=characters, direction=direction)
    return Targets(len(characters) + 1, encode, lines, tuple(characters), direction=direction)


def _encode_text(text: str, characters: Mapping[str, int], direction: Direction) -> list[int]:
    return [characters[character] for character in reorder(normalise(text), direction)]


def _unchanged(value: Any) -> Any:
    return value


def _natural_order(name: str) -> tuple[int, float, str]:
    """Sort numbers by value, before all other names."""
    return (0, float(name), name) if name.replace(".", "", 1).isdecimal() else (1, 0.0, name)
