"""The kind `baselines`: the lines of a page, found in its image."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from mdlstm_tk.kinds.answer import Answer
from mdlstm_tk.kinds.decoding import DECODING_FILE
from mdlstm_tk.kinds.kind import LINES, Kind, Width
from mdlstm_tk.runtime.metadata import Metadata
from mdlstm_tk.text.documents import OVERLAY, PAGES

if TYPE_CHECKING:
    from mdlstm_tk.runtime.io.npy import Array
    from mdlstm_tk.runtime.jobs import ResultOptions

MAPS = 3  # of a model: of baselines, of their beginnings, and of their ends


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
    """A line of a page. Its text is the baseline, as PAGE XML has it.

    Attributes:
        baseline: x and y of its points.
        polygon: x and y of the points of its outline; () if there is none.
    """

    baseline: tuple[tuple[float, float], ...] = ()
    polygon: tuple[tuple[float, float], ...] = ()

    @classmethod
    def of(cls, array: str | None, sample: int | None, *chains: Array) -> FoundLine:
        """The answer for a line with a baseline (K, 2), and perhaps an outline."""
        points = [tuple((x, y) for x, y in chain.round(1).tolist()) for chain in chains]
        return cls(" ".join(f"{x:g},{y:g}" for x, y in points[0]), array, sample, *points)

    def values(self) -> dict[str, Any]:
        return {"baseline": self.text}

    def details(self) -> dict[str, Any]:
        return {"baseline": self.baseline, "polygon": self.polygon}


class Baselines(Kind):
    name = "baselines"
    training_module = "mdlstm_tk.text.baselines_training"
    answers = "lines"
    formats = LINES
    documents = PAGES
    options = (OVERLAY,)
    metadata_class = "text.baselines:BaselinesMetadata"
    run_files = (DECODING_FILE,)
    is_printed = True
    sample_axes = 3

    def rules(self, metadata: Metadata) -> Iterator[tuple[str, bool, str]]:
        assert isinstance(metadata, BaselinesMetadata)
        for name in ("above", "below"):
            yield name, 0 < getattr(metadata, name) < 10, "line spacings, in (0, 10)"
        yield "outputs", metadata.outputs == MAPS, "3 maps: of baselines, their beginnings and their ends"
        yield "layout", metadata.layout == "N H W C", "'N H W C', as a finder of lines takes pages"
        yield "window", metadata.window is not None, "extents, as the maps have a grid"

    def has_documents_in_images(self, options: Mapping[str, Any]) -> bool:
        return True

    def decode(
        self, y: Array, metadata: Metadata, array: str | None, options: ResultOptions, width: Width | None
    ) -> list[FoundLine]:
        """The lines of each sample in the order of reading, without outlines, in positions of x."""
        from mdlstm_tk.text.line_finding import lines_of_output
        from mdlstm_tk.text.line_order import reading_order

        assert metadata.window is not None  # see `rules`
        answers = []
        for k, page in self.each_sample(y, metadata):
            lines = lines_of_output(page, metadata.window)
            answers += [FoundLine.of(array, k, lines[j]) for region in reading_order(lines) for j in region]
        return answers

    def blank(self, metadata: Metadata, options: ResultOptions) -> Answer:
        return FoundLine("")


KIND = Baselines()
