"""Pages drawn by tests, in ALTO and PAGE XML."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw

from helpers.layouts import save
from mdlstm_tk.data import Dataset
from mdlstm_tk.text import Character, ReadLine
from mdlstm_tk.text.pages import Page, read_page
from mdlstm_tk.training import configure, make_task

WIDTH, HEIGHT = 300, 200
ALTO = "http://www.loc.gov/standards/alto/ns-v4#"
OUTLINE = "10 20 90 20 90 50 10 50"
SHAPE = f'<Shape><Polygon POINTS="{OUTLINE}"/></Shape>'
COORDS = '<Coords points="10,20 90,20 90,50 10,50"/><Baseline points="10,44 90,46"/>'
PAGE = "http://schema.primaresearch.org/PAGE/gts/pagecontent/2019-07-15"


def transcription(text: str, confidence: float = 0.9) -> ReadLine:
    return ReadLine(text, confidence, tuple(Character(c, k, k + 1, confidence) for k, c in enumerate(text)))


def alto(
    lines: str, image: str = "a.png", unit: str = "pixel", size: str = "", namespace: str = ALTO
) -> str:
    """An ALTO file with these TextLines in one block."""
    size = size or f'WIDTH="{WIDTH}" HEIGHT="{HEIGHT}"'
    return f"""<?xml version="1.0" encoding="UTF-8"?>
<!-- drawn -->
<alto xmlns="{namespace}">
  <Description>
    <MeasurementUnit>{unit}</MeasurementUnit>
    <sourceImageInformation><fileName>{image}</fileName></sourceImageInformation>
  </Description>
  <Layout>
    <Page ID="p" PHYSICAL_IMG_NR="1" {size}>
      <PrintSpace HPOS="0" VPOS="0" WIDTH="{WIDTH}" HEIGHT="{HEIGHT}">
        <TextBlock ID="b" HPOS="0" VPOS="0" WIDTH="{WIDTH}" HEIGHT="{HEIGHT}">
          {lines}
        </TextBlock>
      </PrintSpace>
    </Page>
  </Layout>
</alto>
"""


def page(lines: str, image: str = "a.png", size: str = "", namespace: str = PAGE) -> str:
    """A PAGE file with these TextLines in one region."""
    size = size or f'imageWidth="{WIDTH}" imageHeight="{HEIGHT}"'
    return f"""<?xml version="1.0" encoding="UTF-8"?>
<PcGts xmlns="{namespace}">
  <Metadata>
    <Creator>a test</Creator><Created>2024-01-01T00:00:00</Created>
    <LastChange>2024-01-01T00:00:00</LastChange>
  </Metadata>
  <Page imageFilename="{image}" {size}>
    <TextRegion id="r" custom="readingOrder {{index:0;}}">
      <Coords points="0,0 {WIDTH},0 {WIDTH},{HEIGHT} 0,{HEIGHT}"/>
      {lines}
    </TextRegion>
  </Page>
</PcGts>
"""


def string(*texts: str, between: str = "<SP/>") -> str:
    """Strings of an ALTO line."""
    return between.join(f'<String CONTENT="{text}"/>' for text in texts)


def equiv(text: str, attributes: str = "") -> str:
    """A TextEquiv of PAGE."""
    return f"<TextEquiv{attributes and ' '}{attributes}><Unicode>{text}</Unicode></TextEquiv>"


def read_text(folder: Path, text: str | bytes) -> Page:
    """The page of an XML file, which is written with an image beside it unless there is one."""
    if not any(path.suffix in (".png", ".tif") for path in folder.iterdir()):
        write_noise(folder / "a.png")
    (folder / "a.xml").write_bytes(text if isinstance(text, bytes) else text.encode())
    return read_page(folder / "a.xml")


def draw_page(path: Path, texts: Sequence[str | None] = ("ab", "ba"), suffix: str = ".png") -> Path:
    """Draw a page of lines of marks, an upright for "a" and a bar for "b", with an ALTO file beside it.

    Returns:
        The path of the ALTO file.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    image = Image.new("L", (WIDTH, HEIGHT), 230)
    draw, lines = ImageDraw.Draw(image), []
    for k, text in enumerate(texts):
        base, right = 40 + 30 * k, 20 + 12 * len(text or "ab")
        for i, character in enumerate(text or "ab"):
            left = 20 + 12 * i
            draw.rectangle(
                (left, base - 12, left + 2, base) if character == "a" else (left, base - 4, left + 8, base),
                20,
            )
        outline = f"15 {base - 16} {right + 5} {base - 16} {right + 5} {base + 4} 15 {base + 4}"
        string = "" if text is None else f'<String CONTENT="{text}"/>'
        shape = f'<Shape><Polygon POINTS="{outline}"/></Shape>'
        baseline = f"15 {base} {right + 5} {base}"
        lines.append(f'<TextLine ID="l{k}" BASELINE="{baseline}">{shape}{string}</TextLine>')
    image.save(path.with_suffix(suffix))
    xml = path.with_suffix(".xml")
    xml.write_text(alto("\n".join(lines), path.with_suffix(suffix).name), encoding="utf-8")
    return xml


def write_noise(path: Path, width: int = WIDTH, height: int = HEIGHT) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (height, width), np.uint8)).save(path)
    return path


def draw_bars(
    path: Path, rows: Sequence[tuple[int, int, int]] = ((20, 60, 280), (20, 100, 280)), suffix: str = ".png"
) -> Path:
    """Draw a page whose lines are bars, each from its left to its right end at a height, which
    `small_models.finder` finds. There is no XML.

    Args:
        path: of the image, whose suffix is replaced.
        rows: left end, height and right end of each.
        suffix: of the image.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    image = Image.new("L", (WIDTH, HEIGHT), 230)
    for left, height, right in rows:
        ImageDraw.Draw(image).rectangle((left, height - 2, right, height + 1), 20)
    image.save(path.with_suffix(suffix))
    return path.with_suffix(suffix)


def read(path: Path, kind: str = "transcribe", **settings: Any) -> Dataset:
    """The task of data, without distortion and resizing, all for training."""
    usual = {"augment": 0.0, "resize": "", "validation": 0.0}
    task = make_task(configure(task=kind, data=str(path), **{**usual, **settings}))
    assert isinstance(task, Dataset)
    return task


def write_lines(path: Path, texts: Sequence[str]) -> Path:
    """Write images of noise, 0.png and so on, and their texts in labels.tsv."""
    rng = np.random.default_rng(0)
    for k, text in enumerate(texts):
        save(path / f"{k}.png", rng.integers(0, 255, (6, 8 * max(len(text), 1))).astype(np.uint8))
    lines = (f"{k}.png\t{text}\n" for k, text in enumerate(texts))
    (path / "labels.tsv").write_text("".join(lines), encoding="utf-8")
    return path


def write_texts(path: Path, count: int = 8) -> Path:
    """Write lines of three to five characters, the same ones in every test."""
    rng = np.random.default_rng(0)
    return write_lines(path, ["".join(rng.choice(list("ab c"), 2 + k % 3)) + "x" for k in range(count)])
