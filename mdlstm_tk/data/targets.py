"""The targets of a user's data: how many outputs they need, which classes there are, and their encoding."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

from mdlstm_tk.data.images import Extents
from mdlstm_tk.data.masks import MaskClasses
from mdlstm_tk.data.samples import Conversion, image_conversion, mask_conversion, unchanged
from mdlstm_tk.data.scan import Moments, Scan, channel_moments
from mdlstm_tk.data.spec import Kind
from mdlstm_tk.errors import InputError
from mdlstm_tk.runtime.preprocessing import Preprocessing


@dataclass(frozen=True)
class Targets:
    """What the targets of all samples are, and how they are encoded.

    Attributes:
        outputs: outputs of the network.
        classes: names of the classes, or the characters.
        conversion: makes the target of a sample, see `Batch.y`.
        masks: the classes of masks, of kind "segment".
    """

    outputs: int
    classes: tuple[str, ...]
    conversion: Conversion
    masks: MaskClasses | None = None

    @classmethod
    def of(
        cls,
        kind: Kind,
        scans: Sequence[Scan],
        are_images: bool,
        resize: Extents | None,
        mask_names: Sequence[str],
        levels: int,
    ) -> Targets:
        """Find out what the targets are.

        Args:
            kind: kind of the task.
            scans: of all samples, those for validation and testing included.
            are_images: whether the samples are images rather than arrays.
            resize: extents that images are resized to.
            mask_names: names of the values 0, 1, … of masks.
            levels: levels of each channel, of kind "density".

        Raises:
            InputError: there are fewer than two classes, or the masks do not fit each other.
        """
        targets = [scan.target for scan in scans]
        if kind == "grid":
            channels = max(target.channels for target in targets)
            image = image_conversion(Preprocessing(channels, resize))
            return cls(channels, (), image if are_images else Conversion(unchanged, unchanged))
        if kind == "density":
            return cls(levels if levels > 2 else 1, (), Conversion(unchanged, unchanged))
        if kind == "transcribe":
            alphabet = tuple(sorted(set("".join(targets))))
            return cls(len(alphabet) + 1, alphabet, Conversion(partial(_encode_text, alphabet), unchanged))
        if kind == "classify":
            classes = tuple(sorted(set(targets), key=_natural_order))
            if len(classes) < 2:
                raise InputError(
                    f"all samples have the class '{classes[0]}', but there must be two or more"
                )
            return cls(len(classes), classes, Conversion(classes.index, unchanged))
        masks = MaskClasses.of(targets)
        return cls(len(masks.values), masks.names(mask_names), mask_conversion(masks, resize), masks)

    def moments(self, scans: Sequence[Scan]) -> tuple[tuple[float, ...], tuple[float, ...]]:
        """Mean and standard deviation of each output if targets are numbers; else empty."""
        if not isinstance(scans[0].target, Moments):
            return (), ()
        return channel_moments([scan.target for scan in scans], self.outputs)


def _encode_text(alphabet: Sequence[str], text: str) -> list[int]:
    """The characters of a text as numbers from 1."""
    return [alphabet.index(character) + 1 for character in text]


def _natural_order(name: str) -> tuple[int, float, str]:
    """Sort numbers by value, before all other names."""
    return (0, float(name), name) if name.replace(".", "", 1).isdecimal() else (1, 0.0, name)
