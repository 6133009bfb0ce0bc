"""Samples from a folder of images.

classify     one subfolder per class, which contains the images of that class
segment      images/ and masks/ with files of the same names
transcribe   images and labels.tsv, each line of which is: file, tab, text
grid         images/ and targets/ with files of the same names
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path, PurePath
from typing import Any

from mdlstm_tk.data.images import find_images, read_pixels
from mdlstm_tk.data.masks import read_mask
from mdlstm_tk.data.spec import Array, Kind, RawSample, UnusableSampleError
from mdlstm_tk.errors import InputError

FORMATS: dict[Kind, str] = {
    "grid": "a folder with images/ and targets/",
    "classify": "a folder with one subfolder of images per class",
    "segment": "a folder with images/ and masks/",
    "transcribe": "a folder with images and a labels.tsv of file, tab, text",
}
Listing = Iterator[tuple[Path, Callable[[], Any]]]  # each image, and a function that reads its target


def list_folder(path: Path, kind: Kind) -> Iterator[RawSample]:
    """List the samples of a folder, without reading them.

    Args:
        path: the folder.
        kind: kind of the task.

    Raises:
        InputError: the folder has another layout.
    """
    for file, read_target in LISTINGS[kind](path):
        yield RawSample(str(file.relative_to(path)), partial(read_pixels, file), read_target, is_file=True)


def empty_classes(path: Path) -> list[str]:
    """The names of the classes of a "classify" folder that have no images."""
    return [folder.name for folder in _class_folders(path) if not find_images(folder)]


def _class_folders(path: Path) -> list[Path]:
    return sorted(entry for entry in path.iterdir() if entry.is_dir() and not entry.name.startswith("."))


def _list_classes(path: Path) -> Listing:
    for folder in _class_folders(path):
        yield from ((file, partial(_identity, folder.name)) for file in find_images(folder))


def _list_masks(path: Path) -> Listing:
    for image, mask in _pairs(path, "masks", "segment"):
        yield image, partial(read_mask, mask)


def _list_targets(path: Path) -> Listing:
    for image, target in _pairs(path, "targets", "grid"):
        yield image, partial(_read_target, target)


def _pairs(path: Path, folder: str, kind: Kind) -> Iterator[tuple[Path, Path | None]]:
    """Pair each image with the file of the same name in another folder, or None if there is none."""
    images, others = path / "images", path / folder
    if not (images.is_dir() and others.is_dir()):
        missing = folder if images.is_dir() else "images"
        raise InputError(f"--data {path}: {missing}/ is missing; expected {FORMATS[kind]}")
    by_name = {other.relative_to(others).with_suffix(""): other for other in find_images(others)}
    for image in find_images(images):
        yield image, by_name.get(image.relative_to(images).with_suffix(""))


def _list_texts(path: Path) -> Listing:
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
        if PurePath(name).is_absolute() or ".." in PurePath(name).parts:
            raise InputError(
                f"--data {path}: {table}, line {number} names '{name}', which is not below {path}; "
                "expected a path relative to that folder"
            )
        yield path / name, partial(_read_text, text)


def _identity(target: str) -> str:
    return target


def _read_text(text: str) -> str:
    if not text:
        raise UnusableSampleError("its text is empty")
    return text


def _read_target(file: Path | None) -> Array:
    if file is None:
        raise UnusableSampleError("it has no target of the same name")
    try:
        return read_pixels(file)
    except UnusableSampleError as reason:
        raise UnusableSampleError(f"its target cannot be used: {reason}") from None


LISTINGS: dict[Kind, Callable[[Path], Listing]] = {
    "grid": _list_targets,
    "classify": _list_classes,
    "segment": _list_masks,
    "transcribe": _list_texts,
}
