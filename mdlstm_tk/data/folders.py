"""Samples from a folder of images.

classify     one subfolder per class, which contains the images of that class
segment      images/ and masks/ with files of the same names
transcribe   images and labels.tsv, each line of which is: file, tab, text
grid         images/ and targets/ with files of the same names
density      images, at any depth
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from mdlstm_tk._util.regular_files import read_text
from mdlstm_tk.data.data_folder import DataFolder
from mdlstm_tk.data.images import find_images, read_pixels
from mdlstm_tk.data.masks import read_mask
from mdlstm_tk.data.spec import Array, Kind, RawSample, UnusableSampleError
from mdlstm_tk.errors import InputError

FORMATS: dict[Kind, str] = {
    "grid": "a folder with images/ and targets/",
    "classify": "a folder with one subfolder of images per class",
    "segment": "a folder with images/ and masks/",
    "transcribe": "a folder with images and a labels.tsv of file, tab, text",
    "density": "a folder with images, or with IDX files such as train-images-idx3-ubyte",
}
MAX_TABLE_BYTES = 2**28  # of labels.tsv
Listing = Iterator[tuple[Path, Callable[[], Any]]]  # each image, and a function that reads its target


def list_folder(path: Path, kind: Kind, data: DataFolder) -> Iterator[RawSample]:
    """List the samples of a folder, without reading them.

    Args:
        path: the folder.
        kind: kind of the task.
        data: what the folder is a part of. Links that lead out of that are left out, and noted there.

    Raises:
        InputError: the folder has another layout.
    """
    for file, read_target in LISTINGS[kind](path, data):
        yield RawSample(str(file.relative_to(path)), partial(read_pixels, file), read_target, is_file=True)


def empty_classes(path: Path, data: DataFolder) -> list[str]:
    """The names of the classes of a "classify" folder that have no images."""
    return [folder.name for folder in data.subfolders(path) if not find_images(data, folder)]


def _list_classes(path: Path, data: DataFolder) -> Listing:
    for folder in data.subfolders(path):
        yield from ((file, partial(_identity, folder.name)) for file in find_images(data, folder))


def _list_images(path: Path, data: DataFolder) -> Listing:
    yield from ((file, _no_target) for file in find_images(data, path))


def _list_masks(path: Path, data: DataFolder) -> Listing:
    yield from _pairs(path, data, "masks", "segment", read_mask)


def _list_targets(path: Path, data: DataFolder) -> Listing:
    yield from _pairs(path, data, "targets", "grid", _read_target)


def _pairs(path: Path, data: DataFolder, folder: str, kind: Kind, read: Callable[[Path], Any]) -> Listing:
    """Pair each image with the function that reads the file of the same name in another folder."""
    images, others = data.require(path / "images"), data.require(path / folder)
    if not (images.is_dir() and others.is_dir()):
        missing = folder if images.is_dir() else "images"
        raise InputError(f"--data {path}: {missing}/ is missing; expected {FORMATS[kind]}")
    by_name = {other.relative_to(others).with_suffix(""): other for other in find_images(data, others)}
    found = {image: image.relative_to(images).with_suffix("") for image in find_images(data, images)}
    unpaired = sorted(map(str, by_name.keys() - set(found.values())))
    for image, name in found.items():
        if name in by_name:
            yield image, partial(read, by_name[name])
            continue
        reason = f"it has no file of the same name in {folder}/"
        if longer := _with_ending(unpaired, str(name)):
            other = by_name[Path(longer)]
            reason += f"; rename {other.relative_to(others)} to {name}{other.suffix}"
        yield image, partial(_refuse, reason)


def _with_ending(names: Sequence[str], name: str) -> str | None:
    """The first of the sorted names that is `name` and an ending, such as 1_mask for 1; or None."""
    for begin in (f"{name}{separator}" for separator in "_-. "):
        position = bisect_left(names, begin)
        if position < len(names) and names[position].startswith(begin):
            return names[position]
    return None


def _list_texts(path: Path, data: DataFolder) -> Listing:
    table = data.require(path / "labels.tsv")
    if not table.exists():
        raise InputError(f"--data {path}: labels.tsv is missing; expected {FORMATS['transcribe']}")
    try:
        lines = read_text(table, MAX_TABLE_BYTES, "utf-8-sig").splitlines()
    except InputError as error:
        raise InputError(f"--data {path}: {error}") from None
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        name, tab, text = line.partition("\t")
        if not tab:
            raise InputError(f"--data {path}: {table}, line {number} has no tab; expected: file, tab, text")
        try:
            image = data.member(path, name)
        except InputError as error:
            raise InputError(f"--data {path}: {table}, line {number} names {error}") from None
        if data.holds(image):
            yield image, partial(_read_text, text)


def _no_target() -> None:
    """The target of an image whose probability is learned."""


def _identity(target: str) -> str:
    return target


def _read_text(text: str) -> str:
    if not text:
        raise UnusableSampleError("its text is empty")
    return text


def _refuse(reason: str) -> Any:
    raise UnusableSampleError(reason)


def _read_target(file: Path) -> Array:
    try:
        return read_pixels(file)
    except UnusableSampleError as reason:
        raise UnusableSampleError(f"its target cannot be used: {reason}") from None


LISTINGS: dict[Kind, Callable[[Path, DataFolder], Listing]] = {
    "grid": _list_targets,
    "classify": _list_classes,
    "segment": _list_masks,
    "transcribe": _list_texts,
    "density": _list_images,
}
