"""Documents: files that hold several samples of a kind, and that get the answers of a model written in."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, ClassVar

from mdlstm_tk.kinds.kind import LINES
from mdlstm_tk.runtime.io import Format

if TYPE_CHECKING:
    from mdlstm_tk.runtime.batching import Result
    from mdlstm_tk.runtime.jobs import InputPath


class Documents(ABC):
    """The documents that models of a kind read, such as pages of text.

    Attributes:
        name: the word for one, whose plural ends in "s".
        types: of the files, in words.
        suffix: of the files, in lower case.
        starts: the few bytes that the content of one may begin with, for those on standard input.
        format: that in which a document is written again; its answers alone are written as `LINES`.
        help: a paragraph for the help of `mdlstm infer`.
        runner: a function (a `staticmethod`), or its place (see `rooms.load`), that runs documents and
            yields the results, as `infer_files` does: `runner(session, jobs, max_bytes, options, stdin)`,
            where stdin is the content of a document on standard input, or None.
    """

    name: ClassVar[str]
    types: ClassVar[str]
    suffix: ClassVar[str]
    starts: ClassVar[tuple[bytes, ...]]
    format: ClassVar[Format]
    help: ClassVar[str]
    runner: ClassVar[str | Callable[..., Iterator[Result]]]

    @property
    def formats(self) -> tuple[Format, ...]:
        """All formats for the results of documents."""
        return (self.format, *LINES)

    @abstractmethod
    def holds(self, path: str) -> bool:
        """True if a file with the suffix is such a document, by its content."""

    @abstractmethod
    def is_result(self, path: str) -> bool:
        """True if a model has written a file with the suffix."""

    @abstractmethod
    def select(
        self, files: Sequence[InputPath], results: Sequence[InputPath], are_images: bool
    ) -> tuple[list[InputPath], int]:
        """The files of an inference without those that belong to a document, such as its image, and the
        number of others that are left out.

        Args:
            files: documents, and files that hold samples.
            results: documents of folders that a model has written, whose parts are no inputs, either.
            are_images: images are documents, too, see `Kind.has_documents_in_images`.

        Raises:
            InputError: there are none.
        """
