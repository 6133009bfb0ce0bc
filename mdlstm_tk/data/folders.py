"""Samples from a folder of images.

classify     one subfolder per class, which contains the images of that class
segment      images/ and masks/ with files of the same names; a mask holds class values
transcribe   images and labels.tsv, each line of which is: file, tab, text
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from mdlstm_tk.data.images import UnusableSampleError, find_images, read_image, read_mask
from mdlstm_tk.data.spec import Kind, RawSample
from mdlstm_tk.errors import InputError

FORMATS: dict[Kind, str] = {
    "classify": "a folder with one subfolder of images per class",
    "segment": "a folder with images/ and masks/",
    "transcribe": "a folder with images and a labels.tsv of file, tab, text",
}


def read_folder(path: Path, kind: Kind, skipped: list[str]) -> Iterator[RawSample]:
    """Read the samples of a folder.

    Args:
        path: the folder.
        kind: kind of the task, one of those in `FORMATS`.
        skipped: receives the name of each unusable sample, and the reason.

    Raises:
        InputError: the folder has another layout.
        MissingExtraError: Pillow is not installed.
    """
    for file, target in LISTINGS[kind](path):
        name = str(file.relative_to(path))
        try:
            x = read_image(file, grey=kind == "transcribe")
            y = read_mask(target, x.shape[:2]) if kind == "segment" else target
            if kind == "transcribe" and not y:
                raise UnusableSampleError("its text is empty")
        except UnusableSampleError as reason:
            skipped.append(f"{name}: {reason}")
        else:
            yield name, x, y


def _list_classes(path: Path) -> Iterator[tuple[Path, str]]:
    """List each image with the name of its class."""
    for folder in sorted(entry for entry in path.iterdir() if entry.is_dir()):
        yield from ((file, folder.name) for file in find_images(folder))


def _list_masks(path: Path) -> Iterator[tuple[Path, Path | None]]:
    """List each image with its mask, or None if there is none."""
    images, masks = path / "images", path / "masks"
    if not (images.is_dir() and masks.is_dir()):
        raise InputError(f"--data {path}: images/ or masks/ is missing; expected {FORMATS['segment']}")
    mask_by_name = {mask.relative_to(masks).with_suffix(""): mask for mask in find_images(masks)}
    for image in find_images(images):
        yield image, mask_by_name.get(image.relative_to(images).with_suffix(""))


def _list_texts(path: Path) -> Iterator[tuple[Path, str]]:
    """List each image of labels.tsv with its text."""
    table = path / "labels.tsv"
    try:
        lines = table.read_text(encoding="utf-8-sig").splitlines()
    except FileNotFoundError:
        raise InputError(
            f"--data {path}: labels.tsv is missing; expected {FORMATS['transcribe']}"
        ) from None
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"--data {path}: cannot read {table}: {error}") from None
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        name, tab, text = line.partition("\t")
        if not tab:
            raise InputError(f"--data {path}: {table}, line {number} has no tab; expected: file, tab, text")
        yield path / name, text


LISTINGS: dict[Kind, Callable[[Path], Iterator[tuple[Path, Any]]]] = {
    "classify": _list_classes,
    "segment": _list_masks,
    "transcribe": _list_texts,
}
