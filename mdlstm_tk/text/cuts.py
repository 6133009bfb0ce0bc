"""Lines that are cut out of pages, beside their bounding boxes, to check the cutting by eye."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import replace
from pathlib import Path

from mdlstm_tk.data.folders import find_files
from mdlstm_tk.data.images import read_pixels
from mdlstm_tk.errors import InputError
from mdlstm_tk.io import Array
from mdlstm_tk.io.images import resize, scale
from mdlstm_tk.kinds.examples import spread
from mdlstm_tk.report.panels import Panel, draw_input
from mdlstm_tk.text.line_cutting import cut_line
from mdlstm_tk.text.pages import Page, is_page, read_page

PAGES, LINES = 10, 2  # of each page
HEIGHT = 64  # of a cut in the picture, in pixels


def cut_panels(folder: Path) -> list[tuple[Panel, Panel]]:
    """Return box and cut of two lines of each of ten pages, spread evenly over a folder.

    Pages that cannot be read are left out. There are none if the folder has no pages.
    """
    panels: list[tuple[Panel, Panel]] = []
    pages = list(filter(is_page, find_files(folder))) if folder.is_dir() else []
    for path in spread(pages, PAGES):
        with suppress(InputError):
            page = read_page(path)
            panels += _page_panels(page, read_pixels(page.image))
    return panels


def _page_panels(page: Page, pixels: Array) -> list[tuple[Panel, Panel]]:
    panels = []
    for line in spread([line for line in page.lines if line.text and line.polygon is not None], LINES):
        box = cut_line(pixels, replace(line, baseline=None, polygon=None))
        cut = cut_line(pixels, line)
        panels.append((_panel(f"{page.path.name} {line.id}", box), _panel(line.text or "", cut)))
    return panels


def _panel(name: str, pixels: Array) -> Panel:
    x = scale(pixels if pixels.ndim == 3 else pixels[..., None])
    width = max(1, round(HEIGHT * x.shape[1] / x.shape[0]))
    return Panel(name, draw_input(resize(x, (HEIGHT, width))))
