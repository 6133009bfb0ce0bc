"""Find the lines of a page with a model of kind `baselines`, and write them as PAGE XML.

>>> lines = find_lines(Session("baselines.onnx"), decode_image(data, "0001.jpg"))
>>> lines[0].baseline, lines[0].polygon

The page is resized before the network sees it, so that what is needed beyond its pixels does not grow with
their number.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any, NamedTuple

import numpy as np

from mdlstm_tk._util.checks import checked
from mdlstm_tk._util.text_order import Direction
from mdlstm_tk._version import __version__
from mdlstm_tk.errors import InputError
from mdlstm_tk.io import Array
from mdlstm_tk.io.metadata import Metadata
from mdlstm_tk.kinds import kind_named
from mdlstm_tk.runtime.inputs import preprocessing_for
from mdlstm_tk.runtime.session import Session
from mdlstm_tk.runtime.tiles.session import TiledSession
from mdlstm_tk.text.baseline_maps import MAPS
from mdlstm_tk.text.baselines import REACH, Baselines
from mdlstm_tk.text.line_cutting import as_image
from mdlstm_tk.text.line_finding import lines_of_output
from mdlstm_tk.text.line_order import reading_order
from mdlstm_tk.text.markup import quoted
from mdlstm_tk.text.outlines import outlines
from mdlstm_tk.text.page_geometry import typical_reach
from mdlstm_tk.text.pages import PageLine
from mdlstm_tk.text.polylines import simplified, spacing_of

NAMESPACE = "http://schema.primaresearch.org/PAGE/gts/pagecontent/2019-07-15"
MIN_SIDE, MAX_ASPECT = 16, 20  # of a page in pixels, and by its shorter side
PRECISION = 0.5  # pixels of x by which a baseline may change when it gets fewer points


class FoundPage(NamedTuple):
    """The lines of a page.

    Attributes:
        width, height: of the page in pixels.
        regions: of each region the lines, in the order of reading.
    """

    width: int
    height: int
    regions: tuple[tuple[PageLine, ...], ...]

    @property
    def lines(self) -> list[PageLine]:
        return [line for region in self.regions for line in region]


@checked
def find_lines(session: Session | TiledSession, pixels: Array) -> list[PageLine]:
    """Find the lines of a page.

    Args:
        session: a model of kind "baselines".
        pixels: (H, W) or (H, W, 3), the page as `decode_image` returns it.

    Returns:
        The lines in the order of reading, without texts, in pixels of the page; `cut_line` cuts them out.

    Raises:
        InputError: the model is of another kind, or the image is no page.
        MissingExtraError: Pillow or SciPy is not installed.
        MDLSTMError: as for a call of the session.
    """
    return find_page(session, pixels).lines


def find_page(
    session: Session | TiledSession, pixels: Array, direction: Direction | None = None
) -> FoundPage:
    """Find the lines of a page, by regions, in the order of texts of a direction; see `find_lines`."""
    metadata = check_finder(session)
    pixels = as_image(pixels)
    height, width = pixels.shape[:2]
    if min(height, width) < MIN_SIDE or max(height, width) > MAX_ASPECT * min(height, width):
        raise InputError(f"an image of {width}x{height} pixels is no page of text")
    x = preprocessing_for(metadata, "pixels")(pixels)
    y: Any = session(x)
    y = y if isinstance(y, np.ndarray) else y[metadata.output_names[0]]
    assert metadata.window is not None  # see `check_finder`
    found = lines_of_output(y, metadata.window)
    spacing = spacing_of(found, len(x))
    reach = (
        spacing * metadata.more.get("above", REACH["above"]),
        spacing * metadata.more.get("below", REACH["below"]),
    )
    around = outlines(x[..., 0], found, spacing, reach)
    scale = np.array([width / x.shape[1], height / x.shape[0]])
    shapes = [
        _shape(line * scale, outline * scale, (width, height), PRECISION * scale[1])
        for line, outline in zip(found, around, strict=True)
    ]
    typical = typical_reach(shapes)  # as for a page that is read from its file, so that both are cut alike
    regions: list[tuple[PageLine, ...]] = []
    number = 0
    for region in reading_order(found, direction):
        lines = []
        for k in region:
            baseline, polygon = shapes[k]
            if baseline is None or polygon is None:
                continue
            number += 1
            left, top = polygon.min(0).astype(int).tolist()
            right, bottom = polygon.max(0).astype(int).tolist()
            lines.append(
                PageLine(f"l{number}", None, baseline, polygon, (left, top, right, bottom), typical)
            )
        regions += [tuple(lines)] if lines else []
    return FoundPage(width, height, tuple(regions))


def check_finder(session: Session | TiledSession) -> Metadata:
    """The metadata of a model of kind "baselines".

    Raises:
        InputError: it is of another kind.
    """
    metadata = session.metadata
    if not isinstance(kind_named(metadata.kind), Baselines):
        of = f"of kind {metadata.kind}" if metadata.kind else "of no kind"
        raise InputError(f"a model of kind baselines finds lines, but this one is {of}")
    if (metadata.outputs, metadata.layout, metadata.window is None) != (MAPS, "N H W C", False):
        raise InputError("the model names the kind baselines, but has other outputs; export it again")
    return metadata


def _shape(
    line: Array, outline: Array, extents: tuple[int, int], precision: float
) -> tuple[Array | None, Array | None]:
    """A baseline and an outline as the file holds them: whole pixels on the page, none twice in a row; None
    if too few are left."""
    parts = []
    for points, least in ((simplified(line, precision), 2), (simplified(outline, precision), 3)):
        whole = np.clip(points.round().astype(int), 0, extents)
        whole = whole[np.concatenate([[True], (np.diff(whole, axis=0) != 0).any(1)])]
        parts.append(whole if len(np.unique(whole, axis=0)) >= least else None)
    return parts[0], parts[1]


def page_xml(page: FoundPage, image: str) -> bytes:
    """A page as PAGE XML of 2019.

    Args:
        page: with its lines.
        image: name of the image file.
    """
    now = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%S")
    regions = []
    for number, lines in enumerate(page.regions, 1):
        corners = np.concatenate([line.polygon for line in lines if line.polygon is not None])
        left, top = np.minimum(corners.min(0), (page.width - 1, page.height - 1))
        right, bottom = np.maximum(corners.max(0), (left + 1, top + 1))
        box = np.array([[left, top], [right, top], [right, bottom], [left, bottom]])
        rows = [
            f'      <TextLine id="{line.id}">\n        <Coords points="{_points(line.polygon)}"/>\n'
            f'        <Baseline points="{_points(line.baseline)}"/>\n      </TextLine>\n'
            for line in lines
        ]
        coords = f'      <Coords points="{_points(box)}"/>\n'
        regions.append(f'    <TextRegion id="r{number}">\n{coords}{"".join(rows)}    </TextRegion>\n')
    order = "".join(
        f'        <RegionRefIndexed index="{k}" regionRef="r{k + 1}"/>\n' for k in range(len(regions))
    )
    group = f'      <OrderedGroup id="order">\n{order}      </OrderedGroup>\n'
    order = f"    <ReadingOrder>\n{group}    </ReadingOrder>\n"
    text = f"""<?xml version="1.0" encoding="UTF-8"?>
<PcGts xmlns="{NAMESPACE}">
  <Metadata>
    <Creator>mdlstm-tk {__version__}</Creator>
    <Created>{now}</Created>
    <LastChange>{now}</LastChange>
  </Metadata>
  <Page imageFilename={quoted(image)} imageWidth="{page.width}" imageHeight="{page.height}">
{order if regions else ""}{"".join(regions)}  </Page>
</PcGts>
"""
    return text.encode()


def _points(points: Sequence[Sequence[int]] | Array | None) -> str:
    return " ".join(f"{int(x)},{int(y)}" for x, y in (() if points is None else points))
