"""Samples from a folder of images.

classify     one subfolder per class, which contains the images of that class
segment      images/ and masks/ with files of the same names
grid         images/ and targets/ with files of the same names
"""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mdlstm_tk.data.images import is_broken_link, read_file, read_pixels
from mdlstm_tk.data.spec import RawSample
from mdlstm_tk.errors import InputError
from mdlstm_tk.io import IMAGE_SUFFIXES
from mdlstm_tk.io.files import is_result

if TYPE_CHECKING:
    from mdlstm_tk.kinds.training_kind import TrainingKind


def find_files(folder: Path) -> list[Path]:
    """Return all visible files below a folder, sorted, without results of `mdlstm infer`."""
    return [path for path in _visible(folder) if not is_result(path)]


def count_results(folder: Path) -> int:
    """Count the results of `mdlstm infer` below a folder, which `find_files` leaves out."""
    return sum(map(is_result, _visible(folder)))


def _visible(folder: Path) -> list[Path]:
    """All visible files below a folder, sorted.

    Links are followed, to each folder once: to the path that has fewest parts, and is the first of those.
    """
    files, folders, visited = [], [folder], set()
    while folders:
        current = folders.pop(0)
        real_path = os.path.realpath(current)
        if real_path in visited:
            continue
        visited.add(real_path)
        folders_here, files_here = entries(current)
        folders += folders_here
        files += files_here
    return sorted(files)


def entries(folder: Path) -> tuple[list[Path], list[Path]]:
    """Return the visible folders and files in a folder, sorted.

    A link to a file that is not there is a file that cannot be read.

    Raises:
        InputError: the folder cannot be read.
    """
    try:
        visible = sorted(entry for entry in folder.iterdir() if not entry.name.startswith("."))
        folders = [entry for entry in visible if entry.is_dir()]
        files = [entry for entry in visible if entry.is_file() or is_broken_link(entry)]
    except OSError as error:
        raise InputError(f"cannot read {folder}: {error.strerror}") from None
    return folders, files


def find_images(folder: Path) -> list[Path]:
    """Return all images below a folder, sorted."""
    return [file for file in find_files(folder) if file.suffix.lower() in IMAGE_SUFFIXES]


def count_other_files(folder: Path, kind: TrainingKind, used: Sequence[str] = ()) -> Counter[str]:
    """Count the visible files below a folder that are neither images nor belong to the kind, by suffix.

    Args:
        folder: to search.
        kind: of the task.
        used: further files that are used, by their paths in the folder.
    """
    names, known = {*kind.further_files, *used}, (*IMAGE_SUFFIXES, *kind.target_files)
    files = (file for file in find_files(folder) if file.relative_to(folder).as_posix() not in names)
    suffixes = (file.suffix.lower() for file in files)
    return Counter(suffix for suffix in suffixes if suffix not in known)


def subfolders(path: Path) -> list[Path]:
    """Return the visible folders in a folder, sorted."""
    return entries(path)[0]


def read_lines(file: Path) -> list[str]:
    """Return the lines of a text in UTF-8; a separator of Unicode, such as U+2028, does not end a line.

    Raises:
        InputError: the file cannot be read, or is in another encoding.
    """
    return re.split("\r\n|\r|\n", read_text(file))


def read_text(file: Path) -> str:
    """Return a text in UTF-8, without a byte order mark; arguments and errors as of `read_lines`."""
    try:
        text = read_file(file).decode("utf-8-sig")
    except UnicodeDecodeError:
        text = "\0"
    except InputError as error:
        raise InputError(f"{file}: {error}") from None
    if "\0" in text:  # as in UTF-16 without a byte order mark
        raise InputError(f"{file} is not a text in UTF-8; save it in that encoding")
    return text


def by_stem(folder: Path, files: Iterable[Path]) -> dict[Path, list[Path]]:
    """Return the files of each name, which are paths in a folder without suffix."""
    files_of: dict[Path, list[Path]] = {}
    for file in files:
        files_of.setdefault(file.relative_to(folder).with_suffix(""), []).append(file)
    return files_of


def refuse_twins(files: Sequence[Path]) -> str:
    """Return the reason why files of one name cannot be used, or "" if there is only one."""
    names = " and ".join(f"{file.parent.name}/{file.name}" for file in files)
    return f"{names} have one name; keep one of them" if len(files) > 1 else ""


def image_sample(path: Path, file: Path, read_target: Callable[[], Any], reason: str = "") -> RawSample:
    """Return the sample of an image, which cannot be used if there is a reason."""
    name = os.path.relpath(file, path)
    if reason:
        return RawSample.unusable(name, reason)
    return RawSample(name, partial(read_pixels, file), read_target, is_image=True)


def list_pairs(
    path: Path, folder: str, read: Callable[[Path], Any], expected: str
) -> tuple[list[RawSample], list[str]]:
    """Pair each image with the file of the same name in another folder, and say how many files have none.

    Args:
        path: the folder with images/.
        folder: the name of the other one.
        read: reads a file of it.
        expected: both, in words.

    Raises:
        InputError: one of them is missing.
    """
    images, targets = path / "images", path / folder
    if not (images.is_dir() and targets.is_dir()):
        missing = folder if images.is_dir() else "images"
        raise InputError(f"{path}: {missing}/ is missing; expected {expected}")
    by_name, images_of = (by_stem(each, find_images(each)) for each in (targets, images))
    unpaired = sorted(map(str, by_name.keys() - images_of.keys()))
    samples: list[RawSample] = []
    for image in find_images(images):
        name = image.relative_to(images).with_suffix("")
        if name in by_name:
            reason = refuse_twins(images_of[name]) or refuse_twins(by_name[name])
            samples.append(image_sample(path, image, partial(read, by_name[name][0]), reason))
            continue
        reason = f"it has no file of the same name in {folder}/"
        prefixes = tuple(f"{name}{separator}" for separator in "_-. ")
        if similar := next((target for target in unpaired if target.startswith(prefixes)), None):
            file = by_name[Path(similar)][0]
            reason += f"; rename {file.relative_to(targets)} to {name}{file.suffix}"
        samples.append(RawSample.unusable(os.path.relpath(image, path), reason))
    outside = [file for file in find_images(path) if not {images, targets} & {*file.parents}]
    return samples, [
        *left_out(f"files in {folder}/ without an image of the same name", len(unpaired)),
        *left_out(f"images outside images/ and {folder}/", len(outside)),
    ]


def left_out(files: str, count: int) -> list[str]:
    """A note for the user that so many files are not used; [] if there are none."""
    return [f"{files}, left out: {count}"] if count else []


def left_out_of(what: str, files: Sequence[Path], path: Path) -> list[str]:
    """A note for the user that files below a folder are not used, with the first of them."""
    return [f"{note}, such as {os.path.relpath(files[0], path)}" for note in left_out(what, len(files))]
