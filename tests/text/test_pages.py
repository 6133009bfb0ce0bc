"""ALTO and PAGE XML: pages of all forms are read, and written with other texts."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers import pages
from helpers.pages import HEIGHT, WIDTH, alto, drawn_page, equiv, numbers, page, read_text, string
from lxml import etree
from PIL import Image

from mdlstm_tk.errors import InputError, MDLSTMError
from mdlstm_tk.text.pages import head_of, read_page, write_page


def untold(xml: Any) -> list[Any]:
    """All elements of a file but those that hold texts."""
    named = ((etree.QName(each).localname, dict(each.attrib)) for each in xml.iter("{*}*"))
    return [each for each in named if not re.fullmatch("String|SP|HYP|TextEquiv|Word|Unicode", each[0])]


@pytest.mark.parametrize("seed", range(60))
def test_pages_of_all_forms_are_read_and_written_alike(seed: int, tmp_path: Path) -> None:
    xml, lines = drawn_page(seed)
    encoding = ("UTF-8", "ISO-8859-1", "UTF-8-sig")[seed % 3] if "e\u0301" not in xml else "UTF-8"
    told = xml.replace('"UTF-8"', f'"{encoding.removesuffix("-sig")}"')
    found = read_text(tmp_path, told.encode(encoding))
    assert head_of(tmp_path / "a.xml")[1] == found.image == tmp_path / "a.png"
    for line, expected in zip(found.lines, lines, strict=True):
        assert line[:2] == expected[:2]
        for points, known in zip(line[2:4], expected[2:4], strict=True):
            assert (points is None) == (known is None)
            assert known is None or np.allclose(points, known, atol=0.01)
    new = {k: pages.transcription(('x < "y" & \u2014', "z")[k > 0], 0.25) for k in range(0, len(lines), 2)}
    write_page(found, new, tmp_path / "new/a.xml")
    (tmp_path / "new/a.png").write_bytes((tmp_path / "a.png").read_bytes())
    again = read_page(tmp_path / "new/a.xml")
    assert untold(again.xml) == untold(found.xml)
    texts = [new[k].text if k in new else line.text for k, line in enumerate(lines)]
    assert [line.text for line in again.lines] == texts
    written = (tmp_path / "new/a.xml").read_text(again.xml.docinfo.encoding)
    assert len(re.findall('(?:WC|conf)="0.2500"', written)) == len(new)
    assert [line.text for line in read_page(tmp_path / "a.xml").lines] == [line.text for line in lines]
    with pytest.raises(MDLSTMError):
        write_page(found, new, tmp_path / "new/a.xml", replace=False)


POLYGON = "10 20 90 20 90 50 10 50"
SHAPE = f'<Shape><Polygon POINTS="{POLYGON}"/></Shape>'
OF_BASELINE = 'BASELINE="10 44 90 46" HPOS="10" VPOS="44" WIDTH="80" HEIGHT="2"'  # as eScriptorium's boxes
INFINITE = '<Shape><Polygon POINTS="-5 20 1e999 20 900 50"/></Shape>'
ODD = [  # attributes and content of a TextLine; baseline and polygon
    ('BASELINE="(10,44)\u00a0(90,4.6e1)"', "", "10 44 90 46", ""),
    (OF_BASELINE, "", "10 44 90 46", ""),
    ('BASELINE="10 44 10 44"', SHAPE, "", POLYGON),
    ('BASELINE="?"', '<Shape><Polygon POINTS=""/></Shape>', "", ""),
    ('BASELINE="10,NaN 50,26 90,25"', SHAPE, "", POLYGON),
    (f'BASELINE="{WIDTH + 9} 9 {WIDTH + 99} 9"', "", "", ""),
    ("", INFINITE, "", "0 20 300 20 300 50"),
]


def test_odd_places_are_read_as_far_as_they_are_on_the_page(tmp_path: Path) -> None:
    lines = "".join(f"<TextLine {attributes}>{content}</TextLine>" for attributes, content, *_ in ODD)
    for line, (*_, baseline, polygon) in zip(read_text(tmp_path, alto(lines)).lines, ODD, strict=True):
        places = ["" if points is None else numbers(points) for points in (line.baseline, line.polygon)]
        assert places == [baseline, polygon]


# Where a baseline begins, and how far below the top of its outline, which is 20 high, it lies.
TOPLINE, LETTERS_ABOVE, UPRIGHT = (90, 4), (90, 16), (10, 16)
DRAWN_LINES = [  # the lines of a page, the text of all; the lines that are turned
    ([TOPLINE], "\u05d0\u05d1", [True]),  # Hebrew
    ([TOPLINE, TOPLINE, UPRIGHT], "", [True, True, False]),  # Hebrew without texts
    ([LETTERS_ABOVE, UPRIGHT], "ab", [True, False]),  # drawn backwards
    ([TOPLINE, UPRIGHT, UPRIGHT], "", [False, False, False]),  # one upside down
    ([TOPLINE, TOPLINE], "ab", [False, False]),  # a page upside down
]


def test_a_page_tells_whether_right_to_left_is_the_order_of_drawing(tmp_path: Path) -> None:
    for kinds, text, is_turned in DRAWN_LINES:
        lines = [
            f'<TextLine BASELINE="{begin} {y} {100 - begin} {y}"><Shape><Polygon POINTS="10 {y - up} '
            f'90 {y - up} 90 {y - up + 20} 10 {y - up + 20}"/></Shape>{string(text)}</TextLine>'
            for y, (begin, up) in zip((40, 80, 120), kinds, strict=False)
        ]
        found = read_text(tmp_path, alto("".join(lines))).lines
        begins = [line.baseline[0, 0] for line in found if line.baseline is not None]
        assert begins == [100 - b if turned else b for (b, _), turned in zip(kinds, is_turned, strict=True)]


BOMB = "".join(f'<!ENTITY e{k + 1} "{f"&e{k};" * 10}">' for k in range(12))
DAMAGED = {  # what is no page of its image
    "a file": alto("", "&x;").replace("<alto", '<!DOCTYPE alto [<!ENTITY x SYSTEM "secret.txt">]><alto'),
    "an address": alto("").replace("<alto", '<!DOCTYPE alto SYSTEM "http://127.0.0.1:9/x.dtd"><alto'),
    "a bomb": alto("", "&e12;").replace("<alto", f'<!DOCTYPE alto [<!ENTITY e0 "ha">{BOMB}]><alto'),
    "another shape": alto("", size='WIDTH="300" HEIGHT="300"'),
    "millimetres without extents": alto("", unit="mm10", size='WIDTH="0" HEIGHT="0"'),
    "two pages": alto("").replace("</Layout>", '<Page ID="q"/></Layout>'),
    "no image": alto("", image=f"{'d' * 300}.jpg").replace("a.png", "gone.png"),
    "no page": "<mets/>",
    "no XML": "text",
    "nothing": "",
    "no end": alto("")[:-9],
}


@pytest.mark.parametrize("case", DAMAGED)
def test_damaged_and_hostile_pages_are_refused_in_one_line(case: str, tmp_path: Path) -> None:
    (tmp_path / "secret.txt").write_text("it is told")
    pages.write_noise(tmp_path / ("b.png" if case == "no image" else "a.png"))
    with pytest.raises(InputError, match=r"a\.xml") as error:
        read_text(tmp_path, DAMAGED[case])
    message = str(error.value)
    assert "\n" not in message and "told" not in message and len(message) < 500
    known = head_of(tmp_path / "a.xml")[0] == "alto"  # it ends, too
    assert case == "a bomb" or known == DAMAGED[case].startswith("<?xml")  # libxml2 may refuse a bomb sooner


def test_the_image_lies_beside_the_page_or_above_it_and_is_upright(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("L", (HEIGHT, WIDTH)).save(tmp_path / "a.png", exif=exif)
    for folder in ("page", "PAGE", "alto"):  # where Transkribus puts them
        (tmp_path / folder).mkdir(exist_ok=True)
        (tmp_path / folder / "a.xml").write_text(page(""))
        found = read_page(tmp_path / folder / "a.xml")
        assert (found.image, found.width, found.height) == (tmp_path / "a.png", WIDTH, HEIGHT)
    for unit, size in (("mm10", 'WIDTH="1500" HEIGHT="1000"'), ("pixel", 'WIDTH="0" HEIGHT="0"')):
        assert read_text(tmp_path, alto("", unit=unit, size=size)).width == WIDTH


def test_what_points_into_a_former_text_goes_and_the_region_has_that_of_its_lines(tmp_path: Path) -> None:
    """As Transkribus writes it; and the text stands where the schema wants it."""
    custom = "a {offset:0;} b {index:0;} c {x:1; offset:1;}"
    lines = f'<TextLine custom="{custom}"><Coords points=""/>{equiv("ab")}<TextStyle/></TextLine>'
    before = read_text(tmp_path, page(lines + f"<TextLine>{equiv('x')}</TextLine>" + equiv("ab\nx")))
    write_page(before, {0: pages.transcription("c")}, tmp_path / "b.xml")
    written = (tmp_path / "b.xml").read_text()
    assert '<TextLine custom="b {index:0;}">' in written
    assert re.findall("<Unicode>([^<]*)<", written) == ["c", "x", "c\nx"]
    places = [*map(written.index, ('points=""', "conf", "TextStyle"))]
    assert places == sorted(places)
