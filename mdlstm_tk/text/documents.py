"""Pages in ALTO or PAGE XML as the documents of an inference, found without NumPy."""

from __future__ import annotations

import os
import warnings
from collections.abc import Sequence
from typing import TYPE_CHECKING

from mdlstm_tk.errors import InputError
from mdlstm_tk.kinds.documents import Documents
from mdlstm_tk.runtime.io import IMAGE_SUFFIXES, suffix_of

if TYPE_CHECKING:
    from mdlstm_tk.runtime.jobs import InputPath

MARK = "mdlstm-tk"
"""The processing instruction in front of a page whose texts a model has read. Most editors of pages drop
it, and whoever corrects the texts by another way removes its line."""

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
        "the XML again with texts and confidences."
    )
    runner = "text.page_inference:infer_pages"

    def holds(self, path: str) -> bool:
        from mdlstm_tk.text.pages import is_page  # imported late: few inputs are pages

        return is_page(path)

    def is_result(self, path: str) -> bool:
        """True if the page has the `MARK`."""
        from mdlstm_tk.text.markup import root_tag

        return MARK in root_tag(path)[1]

    def select(self, files: Sequence[InputPath], results: Sequence[InputPath]) -> list[InputPath]:
        """The files without the images in the folders of pages."""
        pages = [file for file in (*files, *results) if suffix_of(file.relative) == SUFFIX]
        if not pages:
            self._warn_of_lines(files)
            return list(files)
        folders = {os.path.normpath(os.path.dirname(page.source)) for page in pages}
        folders |= {
            os.path.dirname(folder) or "." for folder in folders if os.path.basename(folder) in SUBFOLDERS
        }

        def is_of_page(file: InputPath) -> bool:
            is_image = suffix_of(file.source) in IMAGE_SUFFIXES
            return is_image and os.path.normpath(os.path.dirname(file.source)) in folders

        remaining = [file for file in files if not is_of_page(file)]
        stems = {_stem(page.source) for page in pages}
        named = [file.source for file in files if file.is_named and is_of_page(file)]
        if alone := [source for source in named if _stem(source) not in stems]:
            more = f" and {len(alone) - 1} more" if len(alone) > 1 else ""
            warnings.warn(
                f"{alone[0]}{more} left out: its folder holds pages, so it counts as the image of one; to "
                "read it as a line, run it without them",
                stacklevel=3,
            )
        if not remaining:
            raise InputError(
                f"{pages[0].source} is a result of mdlstm infer; to read it again, name the file"
            )
        return remaining

    def _warn_of_lines(self, files: Sequence[InputPath]) -> None:
        """Warn of an image that is read as a line, although there is a page for it."""
        images = [file.source for file in files if suffix_of(file.source) in IMAGE_SUFFIXES]
        beside = [os.path.splitext(source)[0] + SUFFIX for source in images]
        if known := next((page for page in beside if os.path.isfile(page) and self.holds(page)), None):
            warnings.warn(
                f"an image is read as one line, though {known} tells its lines; to read these, name it",
                stacklevel=4,
            )


def _stem(path: str) -> str:
    return os.path.splitext(os.path.basename(path))[0]
