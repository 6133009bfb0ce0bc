"""The test lines of `handwriting.py` that are hard, and how networks read them."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from math import inf
from pathlib import Path
from typing import Any

import numpy as np
from measuring import markdown

from mdlstm_tk.io import Array
from mdlstm_tk.text import folders
from mdlstm_tk.text.cutting import cut_line
from mdlstm_tk.text.pages import Page, is_page, read_page
from mdlstm_tk.text.reading import error_interval


def slant(pixels: Array) -> float:
    """The shear, in columns a row, at which the ink of a line stands upright: then the squares of the sums
    of its columns are largest (Vinciarelli & Luettin 2001)."""
    ink = np.maximum(np.median(pixels) - pixels.astype(float), 0)
    rows = np.arange(len(ink)) - len(ink) / 2
    columns = np.arange(ink.shape[1])

    def sharpness(shear: float) -> float:
        places = np.rint(columns + shear * rows[:, None]).astype(int) % ink.shape[1]
        return float(np.square(np.bincount(places.ravel(), ink.ravel())).sum())

    return max(np.linspace(-1, 1.5, 26).tolist(), key=sharpness)


def properties(page: Page, name: str, pixels: Array) -> dict[str, dict[str, float]]:
    """Properties that may make the lines of a page hard, by the names of their samples; that of the page is
    the first part of these."""
    lines = [line for line in page.lines if line.text and line.baseline is not None]
    middles = np.array([line.baseline.mean(axis=0) for line in lines])
    found = {}
    for line, middle in zip(lines, middles, strict=True):
        run = line.baseline[-1] - line.baseline[0]
        normal = np.array([-run[1], run[0]]) / max(np.hypot(*run), 1)
        distances = np.abs((middles - middle) @ normal)
        height = sum(line.reach or (1.0, 0.0))
        found[f"{name} {line.id}"] = {
            "slanted letters": abs(slant(cut_line(pixels, line))),
            "close neighbours": -float(np.sort(distances)[1:2].sum() or 10 * height) / height,
            "curved baseline": float(np.abs((line.baseline - line.baseline[0]) @ normal).max()) / height,
        }
    return found


def hard_lines(rows: Mapping[str, Mapping[str, Any]], pages: Path, networks: Collection[str]) -> str:
    """Errors of the networks on the half of the test lines with more of a property, and on the other one;
    and the difference of rows and the default, with its interval over hands."""
    found: dict[str, dict[str, float]] = {}
    for path in filter(is_page, sorted(pages.rglob("*.xml"))):
        page = read_page(path)
        name = path.relative_to(pages).as_posix()
        found |= properties(page, name, folders.page_pixels(page.image))
    counts = {  # of each network, the lines of its seeds one after the other: name, hand, edits, characters
        network: [
            (line, *counts)
            for key, row in rows.items()
            if key.startswith(f"{network},")
            for line, counts in row["lines"].items()
            if line in found
        ]
        for network in networks
    }
    names, hands, _, lengths = map(np.array, zip(*counts["default"], strict=True))
    edits = {network: np.array([line[2] for line in lines]) for network, lines in counts.items()}
    texts = []
    for name in next(iter(found.values())):
        values = np.array([found[line][name] for line in names.tolist()])
        for label, half in (("more", values > np.median(values)), ("less", values <= np.median(values))):
            errors = [100 * each[half].sum() / lengths[half].sum() for each in edits.values()]
            gains = (edits["rows"] - edits["default"])[half]
            ends = error_interval(gains.tolist(), lengths[half].tolist(), hands[half].tolist())
            low, high = (100 * end for end in ends or (-inf, inf))
            gain = 100 * gains.sum() / lengths[half].sum()
            difference = f"{gain:+.1f} ({low:+.1f} to {high:+.1f})"
            texts.append([f"{name}: {label}", *(f"{error:.1f}" for error in errors), difference])
    return markdown(("half of the test lines", *networks, "rows − default"), texts, 1)
