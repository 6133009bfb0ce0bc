"""ALTO and PAGE XML: what is read of them, and what writing changes."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers.pages import (
    COORDS,
    HEIGHT,
    SHAPE,
    WIDTH,
    alto,
    equiv,
    page,
    read_text,
    string,
    transcription,
    write_noise,
)
from PIL import Image

from mdlstm_tk.errors import InputError, MDLSTMError
from mdlstm_tk.text.pages import is_page, read_page, write_page

POLYGON = [[10, 20], [90, 20], [90, 50], [10, 50]]
BASELINE = [[10, 44], [90, 46]]

TEXTS = {  # what is inside the TextLine, and its text
    "Strings": (alto, SHAPE + string("un", "deux", between=""), "un deux"),
    "HYP": (alto, string("un", "deu") + '<HYP CONTENT="-"/>', "un deu-"),
    "HYP of BnF": (alto, string("un", "deu-") + '<HYP CONTENT="-"/>', "un deu-"),
    "decomposed": (alto, string("e\u0301 "), "é"),
    "empty String": (alto, string("un", "", "deux"), "un deux"),
    "lowest index": (page, equiv("b", 'index="1"') + equiv("a") + equiv("c", 'index="2"'), "a"),
    "on lines of its own": (page, COORDS + equiv("\n  un\n  deux "), "un deux"),
    "words": (page, f"<Word>{equiv('un')}</Word><Word>{equiv('deux')}</Word><TextEquiv/>", "un deux"),
    "nothing": (page, "", ""),
}


@pytest.mark.parametrize("case", TEXTS)
def test_the_text_of_a_line(case: str, tmp_path: Path) -> None:
    form, content, text = TEXTS[case]
    (line,) = read_text(tmp_path, form(f"<TextLine>{content}</TextLine>")).lines
    assert (line.id, line.text) == ("1", text)


BOX = 'HPOS="10" VPOS="20" WIDTH="80" HEIGHT="30"'
PLACES = {  # attributes and content of the TextLine; baseline and polygon
    "ALTO": (alto, 'BASELINE="10 44 90 46"', SHAPE, BASELINE, POLYGON),
    "brackets": (alto, 'BASELINE="(10,44)\u00a0(90,4.6e1)"', SHAPE, BASELINE, POLYGON),
    "baseline from right to left": (alto, 'BASELINE="90,46 10,44"', SHAPE, BASELINE, POLYGON),
    "upside down": (alto, 'BASELINE="90,22 10,22"', SHAPE, [[90, 22], [10, 22]], POLYGON),
    "level baseline": (alto, f'BASELINE="45" {BOX}', "", [[10, 45], [90, 45]], POLYGON),
    "a box alone": (alto, BOX, "", None, POLYGON),
    "the box of the baseline": (  # as eScriptorium writes it
        *(alto, 'BASELINE="10 44 90 46" HPOS="10" VPOS="44" WIDTH="80" HEIGHT="2"', "", BASELINE, None),
    ),
    "a point": (alto, 'BASELINE="10 44 10 44"', SHAPE, None, POLYGON),
    "no numbers": (alto, 'BASELINE="?"', '<Shape><Polygon POINTS=""/></Shape>', None, None),
    "not only numbers": (alto, 'BASELINE="10,NaN 50,26 90,25"', SHAPE, None, POLYGON),
    "a letter in a number": (alto, 'BASELINE="10,25 5O,26 90,25"', SHAPE, None, POLYGON),
    "beyond the page": (
        *(alto, f'BASELINE="{WIDTH + 9} 9 {WIDTH + 99} 9"', ""),
        *(None, None),
    ),
    "outside": (
        *(alto, "", '<Shape><Polygon POINTS="-5 20 1e999 20 900 50"/></Shape>'),
        *(None, [[0, 20], [WIDTH, 20], [WIDTH, 50]]),
    ),
    "PAGE": (page, "", COORDS, BASELINE, POLYGON),
    "empty Coords": (page, "", "<Coords/>", None, None),
}


@pytest.mark.parametrize("case", PLACES)
def test_the_place_of_a_line(case: str, tmp_path: Path) -> None:
    form, attributes, content, *expected = PLACES[case]
    (line,) = read_text(tmp_path, form(f"<TextLine {attributes}>{content}</TextLine>")).lines
    found = (None if points is None else points.tolist() for points in (line.baseline, line.polygon))
    assert [*found] == expected


def test_the_reach_of_lines_is_typical_of_the_page(tmp_path: Path) -> None:
    lines = [
        f'<TextLine BASELINE="10 {y} 90 {y}"><Shape><Polygon POINTS="{points}"/></Shape></TextLine>'
        for y, above, below in ((40, 20, 6), (80, 24, 8), (120, 60, 9))
        for points in (f"10 {y - above} 90 {y - above} 90 {y + below} 10 {y + below}",)
    ]
    assert {line.reach for line in read_text(tmp_path, alto("\n".join(lines))).lines} == {(24.0, 8.0)}
    alone = "".join(f'<TextLine BASELINE="10 {y} 90 {y}"/>' for y in (60, 90, 120))
    assert read_text(tmp_path, alto(alone)).lines[0].reach == pytest.approx((21, 10.5))
    assert read_text(tmp_path, alto("<TextLine/>")).lines[0].reach is None


TOPLINE, UPRIGHT = "90 {} 10 {}", "10 {} 90 {}"  # above its letters and leftwards, and the usual one
DRAWN = {  # the baseline of each line, the text of all; the lines that are turned
    "Hebrew": ([TOPLINE], "\u05d0\u05d1", [True]),
    "Hebrew without texts": ([TOPLINE, TOPLINE, UPRIGHT], "", [True, True, False]),
    "a line upside down": ([TOPLINE, UPRIGHT, UPRIGHT], "", [False, False, False]),
    "a page upside down": ([TOPLINE, TOPLINE], "ab", [False, False]),
}


@pytest.mark.parametrize("case", DRAWN)
def test_a_page_tells_whether_right_to_left_is_the_order_of_drawing(case: str, tmp_path: Path) -> None:
    baselines, text, is_turned = DRAWN[case]
    lines = [
        f'<TextLine BASELINE="{baseline.format(y, y)}"><Shape><Polygon POINTS="10 {y - 4} 90 {y - 4} 90 '
        f'{y + 20} 10 {y + 20}"/></Shape>{string(text)}</TextLine>'
        for y, baseline in zip(range(40, 200, 40), baselines, strict=False)
    ]
    found = read_text(tmp_path, alto("".join(lines))).lines
    begins = [line.baseline[0, 0] for line in found if line.baseline is not None]
    pairs = zip(baselines, is_turned, strict=True)
    assert begins == [10 if turned or line == UPRIGHT else 90 for line, turned in pairs]


VERSIONS: dict[str, Any] = {
    "ALTO 2": alto("<TextLine/>", namespace="http://www.loc.gov/standards/alto/ns-v2#"),
    "no namespace": alto("<TextLine/>").replace(' xmlns="http://www.loc.gov/standards/alto/ns-v4#"', ""),
    "a prefix": re.sub(r"<(/?)([A-Z])", r"<\1a:\2", alto("<TextLine/>"))
    .replace("<alto xmlns", "<a:alto xmlns:a")
    .replace("</alto", "</a:alto"),
    "PAGE 2013": page("<TextLine/>", namespace="http://schema.primaresearch.org/x/2013-07-15"),
    "UTF-8 with a mark": b"\xef\xbb\xbf" + alto("<TextLine/>").encode(),
    "Latin-1": alto("<!-- é --><TextLine/>").replace("UTF-8", "ISO-8859-1").encode("latin-1"),
    "a path": alto("<TextLine/>", image="D:\\scans\\a.png"),
    "an address": page("<TextLine/>", image="https://example.org/iiif/a.png"),
    "another name": alto("<TextLine/>", image="gone.tif"),
    "no name": alto("<TextLine/>", image=""),
    "no extents": alto("<TextLine/>", size='WIDTH="0" HEIGHT="0"'),
    "other extents": alto("<TextLine/>", unit="mm10", size='WIDTH="1500" HEIGHT="1000"'),
}


@pytest.mark.parametrize("case", VERSIONS)
def test_versions_and_encodings_are_read_and_written(case: str, tmp_path: Path) -> None:
    before = read_text(tmp_path, VERSIONS[case])
    assert is_page(tmp_path / "a.xml")
    assert (before.image, before.width, before.height) == (tmp_path / "a.png", WIDTH, HEIGHT)
    write_page(before, {0: transcription('é <\u2014&> "b"\'\x00')}, tmp_path / "a.xml")
    assert [line.text for line in read_page(tmp_path / "a.xml").lines] == ['é <\u2014&> "b"\'\ufffd']


def test_coordinates_are_scaled_to_the_image(tmp_path: Path) -> None:
    text = alto(f'<TextLine BASELINE="10 44 90 46">{SHAPE}</TextLine>', size='WIDTH="600" HEIGHT="400"')
    (line,) = read_text(tmp_path, text).lines
    assert line.polygon is not None and line.polygon.tolist() == (np.array(POLYGON) / 2).tolist()


BOMB = "".join(f'<!ENTITY e{k + 1} "{f"&e{k};" * 10}">' for k in range(12))
HOSTILE = {  # a document type, and the name of the image
    "a file": ('<!DOCTYPE alto [<!ENTITY x SYSTEM "secret.txt">]>', "&x;"),
    "an address": ('<!DOCTYPE alto SYSTEM "http://127.0.0.1:9/x.dtd">', "a.png"),
    "a bomb": (f'<!DOCTYPE alto [<!ENTITY e0 "ha">{BOMB}]>', "&e12;"),
}


@pytest.mark.parametrize("case", HOSTILE)
def test_hostile_xml_does_nothing(case: str, tmp_path: Path) -> None:
    (tmp_path / "secret.txt").write_text("secret")
    doctype, name = HOSTILE[case]
    text = alto("<TextLine/>", image=name).replace("<alto", f"{doctype}<alto")
    with pytest.raises(InputError) as error:
        read_text(tmp_path, text)
    assert "secret" not in str(error.value).replace("secret.txt", "")
    assert len(str(error.value)) < 500
    is_page(tmp_path / "a.xml")  # ends, too


BAD = {
    "another shape": alto("", size='WIDTH="300" HEIGHT="300"'),
    "millimetres without extents": alto("", unit="mm10", size='WIDTH="0" HEIGHT="0"'),
    "two pages": alto("").replace("</Layout>", '<Page ID="q"/></Layout>'),
    "no page": "<mets/>",
    "no XML": "text",
    "nothing": "",
    "no end": alto("")[:-9],
}


@pytest.mark.parametrize("case", BAD)
def test_what_is_no_page_of_its_image_is_refused_in_one_line(case: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"a\.xml") as error:
        read_text(tmp_path, BAD[case])
    assert "\n" not in str(error.value)


def test_a_page_without_its_image_or_that_is_not_there_is_refused(tmp_path: Path) -> None:
    (tmp_path / "d.xml").write_text(alto("", image=f"{'d' * 300}.jpg"))
    for name in ("d", "gone"):
        with pytest.raises(InputError, match=name):
            read_page(tmp_path / f"{name}.xml")
    assert not is_page(tmp_path / "gone.xml")


@pytest.mark.parametrize("folder", ["page", "PAGE"])
def test_transkribus_puts_pages_in_a_subfolder(folder: str, tmp_path: Path) -> None:
    write_noise(tmp_path / "a.png")
    (tmp_path / folder).mkdir()
    (tmp_path / folder / "a.xml").write_text(page("<TextLine/>"))
    assert read_page(tmp_path / folder / "a.xml").image == tmp_path / "a.png"


def test_the_extents_are_those_of_the_upright_image(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("L", (HEIGHT, WIDTH)).save(tmp_path / "a.png", exif=exif)
    found = read_text(tmp_path, alto(""))
    assert (found.width, found.height) == (WIDTH, HEIGHT)


CONF = 'conf="0.9000"'
WRITTEN = {  # content of a line, and afterwards, when "a b" is written
    "Strings": (
        *(alto, f'{SHAPE}{string("un", "deux")}<HYP CONTENT="-"/>'),
        f'{SHAPE}<String CONTENT="a b" WC="0.9000"/>',
    ),
    "no String": (alto, SHAPE, f'{SHAPE}<String CONTENT="a b" WC="0.9000"/>'),
    "PAGE": (page, COORDS + equiv("x") + "<TextStyle/>", f"{COORDS}{equiv('a b', CONF)}<TextStyle/>"),
    "words": (page, f"{COORDS}<Word>{equiv('x')}</Word>", COORDS + equiv("a b", CONF)),
    "alternatives": (page, equiv("x", 'index="1"') + equiv("y", 'index="0"'), equiv("a b", CONF)),
}


@pytest.mark.parametrize("case", WRITTEN)
def test_writing_changes_texts_and_confidences_alone(case: str, tmp_path: Path) -> None:
    form, content, expected = WRITTEN[case]
    around = '<TextLine ID="m" custom="own {x:1;}"><Own kept="1"/></TextLine><TextLine ID="l">%s</TextLine>'
    before = read_text(tmp_path, form(around % content))
    reading = {1: transcription("a b")}
    write_page(before, reading, tmp_path / "new/b.xml")
    written = (tmp_path / "new/b.xml").read_text()
    bare = [
        re.sub(r"^<\?xml.*\?>|(?<=>)\s+(?=<)", "", each).strip()
        for each in (written, form(around % expected))
    ]
    assert bare[0] == bare[1]
    write_page(before, {}, tmp_path / "a.xml")  # what was written before is in no other file
    assert [line.text for line in read_page(tmp_path / "a.xml").lines] == [
        line.text for line in before.lines
    ]
    with pytest.raises(MDLSTMError):
        write_page(before, reading, tmp_path / "new/b.xml", replace=False)


def test_what_points_into_a_former_text_goes_and_the_region_has_that_of_its_lines(tmp_path: Path) -> None:
    """As Transkribus writes it."""
    custom = "a {offset:0;} b {index:0;} c {x:1; offset:1;}"
    lines = f'<TextLine custom="{custom}">{equiv("ab")}</TextLine><TextLine>{equiv("x")}</TextLine>'
    write_page(
        read_text(tmp_path, page(lines + equiv("ab\nx"))), {0: transcription("c")}, tmp_path / "b.xml"
    )
    written = (tmp_path / "b.xml").read_text()
    assert '<TextLine custom="b {index:0;}">' in written
    assert re.findall("<Unicode>([^<]*)<", written) == ["c", "x", "c\nx"]
