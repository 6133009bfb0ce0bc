"""The kind `baselines`: the lines of a page, found in its image."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from mdlstm_tk.kinds.answer import Answer
from mdlstm_tk.kinds.decoding import DECODING_FILE
from mdlstm_tk.kinds.kind import Kind
from mdlstm_tk.runtime.metadata import Metadata
from mdlstm_tk.text.documents import OVERLAY, PAGES

if TYPE_CHECKING:
    from mdlstm_tk.runtime.jobs import ResultOptions
    from mdlstm_tk.text.pages import PageLine


@dataclass(frozen=True)
class BaselinesMetadata(Metadata):
    """The metadata of a model that finds lines.

    Attributes:
        above, below: line spacings that outlines of the training pages reach above and below baselines.
    """

    above: float = 0.7
    below: float = 0.35


@dataclass(frozen=True)
class FoundLine(Answer):
    """A line of a page; its text is the baseline.

    Attributes:
        line: with its baseline and outline.
    """

    line: PageLine | None = None

    @classmethod
    def of(cls, line: PageLine) -> FoundLine:
        points = [] if line.baseline is None else line.baseline.tolist()
        return cls(" ".join(f"{x},{y}" for x, y in points), line.id, None, line)

    def values(self) -> dict[str, Any]:
        return {"baseline": self.text}

    def details(self) -> dict[str, Any]:
        line = self.line
        return {
            name: [] if line is None or (points := getattr(line, name)) is None else points.tolist()
            for name in ("baseline", "polygon")
        }


class Baselines(Kind):
    name = "baselines"
    training_module = "mdlstm_tk.text.baselines_training"
    answers = "lines"
    documents = PAGES
    options = (OVERLAY,)
    metadata_class = "text.baselines:BaselinesMetadata"
    run_files = (DECODING_FILE,)

    def rules(self, metadata: Metadata) -> Iterator[tuple[str, bool, str]]:
        assert isinstance(metadata, BaselinesMetadata)
        for name in ("above", "below"):
            yield name, 0 < getattr(metadata, name) < 10, "line spacings, in (0, 10)"
        yield "outputs", metadata.outputs == 3, "3 maps: of baselines, their beginnings and their ends"
        yield "window", metadata.window is not None, "extents, as the maps have a grid"

    def has_documents_in_images(self, options: Mapping[str, Any]) -> bool:
        return True

    def blank(self, metadata: Metadata, options: ResultOptions) -> Answer:
        return FoundLine("")


KIND = Baselines()
