"""Pages in ALTO or PAGE XML as the documents of an inference, found without NumPy."""

from __future__ import annotations

import os
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from mdlstm_tk.errors import InputError
from mdlstm_tk.kinds.documents import Documents
from mdlstm_tk.kinds.options import Option
from mdlstm_tk.runtime.io import IMAGE_SUFFIXES, suffix_of

if TYPE_CHECKING:
    from mdlstm_tk.runtime.jobs import InputPath

MARK = "mdlstm-tk"
"""The processing instruction in front of a page whose lines or texts are those of a model. Most editors of
pages drop it, and whoever corrects the texts by another way removes its line."""

SUFFIX = ".xml"
SUBFOLDERS = ("page", "alto")  # where Transkribus puts the XML; images lie in the folder above


class Pages(Documents):
    """Pages whose lines a recogniser reads; see `mdlstm_tk.text.pages`."""

    name = "page"
    types = "ALTO or PAGE xml"
    suffix = SUFFIX
    starts = (b"<", b"\xef\xbb\xbf<")
    format = "xml"
    help = (
        "A recogniser reads the lines of pages, images with ALTO or PAGE XML beside them: -o read/ writes "
        "the XML again with texts and confidences. A model of kind baselines finds the lines of images; "
        "given it as the line model, a recogniser reads these, too."
    )
    runner = "text.page_inference:infer_pages"

    def holds(self, path: str) -> bool:
        from mdlstm_tk.text.pages import is_page  # imported late: few inputs are pages

        return is_page(path)

    def is_result(self, path: str) -> bool:
        """True if the page has the `MARK`."""
        from mdlstm_tk.text.markup import root_tag

        return MARK in root_tag(path)[1]

    def select(
        self, files: Sequence[InputPath], results: Sequence[InputPath], are_images: bool
    ) -> tuple[list[InputPath], int]:
        """The files without the images of pages, and without others in the folders of pages, which are
        counted, unless images are pages. A result hides its own image alone."""
        pages = [file for file in files if suffix_of(file.relative) == SUFFIX]
        images = [file for file in files if suffix_of(file.source) in IMAGE_SUFFIXES]
        own = images_of_pages(
            [page.source for page in (*pages, *results)], [image.source for image in images]
        )
        folders = {folder for page in pages for folder in _folders(page.source)}
        alone = [file for file in images if file.source not in own and _folder(file.source) in folders]
        alone = [] if are_images else alone
        if alone:
            more = f" and {len(alone) - 1} more" if len(alone) > 1 else ""
            warnings.warn(
                f"{alone[0].source}{more} left out: its folder holds pages, so it counts as the image of "
                "one; to read it as a line, run it without them",
                stacklevel=3,
            )
        hidden = own | {file.source for file in alone}
        remaining = [file for file in files if file.source not in hidden]
        if not remaining:
            raise InputError(
                f"{results[0].source} is a result of mdlstm infer; to read it again, name the file"
            )
        self._warn_of_lines(remaining, are_images)
        return remaining, len(alone)

    def _warn_of_lines(self, files: Sequence[InputPath], are_images: bool) -> None:
        """Warn of an image that is read as a line, or whose lines are found, although there is a page for
        it."""
        images = [file.source for file in files if suffix_of(file.source) in IMAGE_SUFFIXES]
        beside = [os.path.splitext(source)[0] + SUFFIX for source in images]
        if known := next((page for page in beside if os.path.isfile(page) and self.holds(page)), None):
            way = "the lines of an image are found" if are_images else "an image is read as one line"
            warnings.warn(
                f"{way}, though {known} tells its lines; to read these, name it",
                stacklevel=4,
            )


PAGES = Pages()
OVERLAY = Option(
    "overlay",
    PAGES.formats,
    "Folder for pictures of the pages, with what was found and read drawn on them.",
    Path,
    "DIR",
    of_documents=True,
)


def images_of_pages(pages: Sequence[str], images: Sequence[str]) -> set[str]:
    """The images that belong to pages: those that `read_page` finds, and those of the name of a page that
    cannot be read."""
    from mdlstm_tk.text.pages import image_of  # imported late: few inputs are pages

    found, names = set[str](), set[tuple[str, str]]()
    for page in pages:
        if image := image_of(page):
            found.add(os.path.normpath(image))
        else:
            names |= {(folder, _stem(page)) for folder in _folders(page)}
    return {
        image
        for image in images
        if os.path.normpath(image) in found or (_folder(image), _stem(image)) in names
    }


def _folders(page: str) -> tuple[str, ...]:
    """The folders in which the image of a page may lie."""
    folder = _folder(page)
    is_sub = os.path.basename(folder).lower() in SUBFOLDERS
    return (folder, os.path.dirname(folder) or ".") if is_sub else (folder,)


def _folder(path: str) -> str:
    return os.path.normpath(os.path.dirname(path))


def _stem(path: str) -> str:
    return os.path.splitext(os.path.basename(path))[0]
