"""Pages drawn by tests, in ALTO and PAGE XML."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from lxml import etree
from PIL import Image, ImageDraw

from helpers.layouts import save
from mdlstm_tk.data import Dataset
from mdlstm_tk.text import Character, ReadLine
from mdlstm_tk.text.pages import Page, PageLine, read_page
from mdlstm_tk.training import configure, make_task

WIDTH, HEIGHT = 300, 200
ALTO = "http://www.loc.gov/standards/alto/ns-v4#"
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


# Forms of files, with what is replaced in ours.
PREFIXED = ((r"<(/?)([A-Z])", r"<\1a:\2"), ("<alto xmlns", "<a:alto xmlns:a"), ("</alto", "</a:alto"))
FORMS: list[tuple[Any, Sequence[tuple[str, str]]]] = [
    (alto, ()),
    (alto, (("ns-v4", "ns-v2"), ("a.png", r"D:\\\\scans\\\\a.png"))),
    (alto, ((" xmlns=.*>", ">"), ("a.png", ""))),
    (alto, (*PREFIXED, ("a.png", "gone.tif"))),
    (page, ()),
    (page, (("2019-07-15", "2013-07-15"), ("a.png", "https://example.org/iiif/a.png"))),
]
HYPHEN, UN_DEUX = '<HYP CONTENT="-"/>', f"<Word>{equiv('un')}</Word><Word>{equiv('deux')}</Word>"
WRITTEN = {  # of a line, and what stands for it in ALTO and in PAGE
    "": ("", ""),
    "un deux": (string("un", "", "deux", between=""), UN_DEUX),
    "trois quatre": (string("trois", "quatre"), equiv("\n  trois\n  quatre ")),
    "cin-": (string("cin") + HYPHEN, equiv("x", 'index="1"') + equiv("cin-", 'index="0"')),
    "six-": (string("six-") + HYPHEN, equiv("x", 'index="1"') + equiv("six-")),
    "é": (string("e\u0301 "), equiv("e\u0301 ")),
}


def chain(*numbers: float) -> np.ndarray:
    return np.array(numbers, float).reshape(-1, 2)


def numbers(points: np.ndarray) -> str:
    return " ".join(f"{v:g}" for v in points.ravel())


def drawn_page(seed: int) -> tuple[str, list[PageLine]]:
    """A page of some form, with lines that have some of baseline, outline, box and text; and its lines as
    they are to be read."""
    rng = np.random.default_rng(seed)
    form, replaced = FORMS[seed % len(FORMS)]
    scale, names, lines, elements = (
        float(rng.choice([1, 2, 0.5])),
        [*WRITTEN],
        list[PageLine](),
        list[str](),
    )
    for k in range(int(rng.integers(5))):
        y, right = 40 + 30 * k, int(rng.integers(60, WIDTH - 20))
        text, has_baseline, shape = names[rng.integers(len(names))], rng.random() < 0.7, rng.integers(4)
        baseline = chain(10, y, 40, y + 2, right, y + 4)
        outline = chain(10, y - 20, right, y - 20, right, y + 8, 10, y + 8)
        points, corners = numbers(baseline / scale), numbers(outline / scale)
        if form is alto and shape == 2 and rng.random() < 0.5:  # a level line, ALTO before 4
            baseline, points = chain(10, y, right, y), f"{y / scale:g}"
        name = f"l{k}" if rng.random() < 0.5 else ""
        if form is alto:
            box = zip(("HPOS", "VPOS", "WIDTH", "HEIGHT"), (10, y - 20, right - 10, 28), strict=True)
            attributes = f'ID="{name}"' * bool(name) + f' BASELINE="{points}"' * bool(has_baseline)
            attributes += "".join(f' {key}="{v / scale:g}"' for key, v in box) if shape == 2 else ""
            content = f'<Shape><Polygon POINTS="{corners}"/></Shape>' * int(shape == 1) + WRITTEN[text][0]
        else:
            pairs = [re.sub(r"(\S+) (\S+)", r"\1,\2", each) for each in (corners, points)]
            attributes = f'id="{name}"' * bool(name) + ' custom="own {x:1;}"'
            content = f'<Coords points="{pairs[0]}"/>' * int(shape in (1, 2))
            content += f'<Baseline points="{pairs[1]}"/>' * bool(has_baseline) + WRITTEN[text][1]
            content += "<TextStyle/>"
        elements.append(f"<TextLine {attributes}>{content}</TextLine>")
        places = (baseline if has_baseline else None, outline if shape in (1, 2) else None)
        lines.append(PageLine(name or str(k + 1), text, *places))
    keys = ("WIDTH", "HEIGHT") if form is alto else ("imageWidth", "imageHeight")
    size = f'{keys[0]}="{WIDTH / scale:g}" {keys[1]}="{HEIGHT / scale:g}"'
    xml = form("\n".join(elements), size=size)
    for old, new in replaced:
        xml = re.sub(old, new, xml)
    return xml, lines


def read_text(folder: Path, text: str | bytes) -> Page:
    """The page of an XML file, which is written with an image beside it unless there is one."""
    if not any(path.suffix in (".png", ".tif") for path in folder.iterdir()):
        write_noise(folder / "a.png")
    (folder / "a.xml").write_bytes(text if isinstance(text, bytes) else text.encode())
    return read_page(folder / "a.xml")


def check_page(path: str) -> list[str]:
    """Check what the schema of PAGE wants of our files, and return the texts of the lines."""
    order = {"TextLine": ["Coords", "Baseline", "TextEquiv"], "PcGts": ["Metadata", "Page"]}
    order |= {"Page": ["ReadingOrder", "TextRegion"], "TextRegion": ["Coords", "TextLine"]}
    root = etree.parse(path).getroot()
    sheet = next(root.iter("{*}Page"))
    extents = int(sheet.get("imageWidth")), int(sheet.get("imageHeight"))
    for element in root.iter():
        tags = [etree.QName(child).localname for child in element]
        if known := order.get(etree.QName(element).localname):
            assert [known.index(tag) for tag in tags] == sorted(known.index(tag) for tag in tags)
        for point in element.get("points", "").split():
            assert all(0 <= int(x) <= most for x, most in zip(point.split(","), extents, strict=True))
    names = [element.get("id") for element in root.iter() if "id" in element.attrib]
    assert len({*names}) == len(names)
    assert {*names} >= {each.get("regionRef") for each in root.iter("{*}RegionRefIndexed")}
    return [each.text or "" for each in root.iter("{*}Unicode")]


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
