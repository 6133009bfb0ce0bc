"""ALTO and PAGE XML: what is read of them."""

from __future__ import annotations

import re
from pathlib import Path

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

from mdlstm_tk.errors import InputError
from mdlstm_tk.io.images import decode_image
from mdlstm_tk.text.pages import is_page, read_page, write_page

POLYGON = [[10, 20], [90, 20], [90, 50], [10, 50]]
BASELINE = [[10, 44], [90, 46]]
BOX = (10, 20, 90, 50)

TEXTS = {  # what is inside the TextLine, and its text
    "Strings": (alto, SHAPE + string("un", "deux", between=""), "un deux"),
    "HYP": (alto, string("un", "deu") + '<HYP CONTENT="-"/>', "un deu-"),
    "HYP of BnF": (alto, string("un", "deu-") + '<HYP CONTENT="-"/>', "un deu-"),
    "soft HYP": (alto, string("un", "deu\u00ac") + '<HYP CONTENT="\u00ad"/>', "un deu\u00ac"),
    "decomposed": (alto, string("e\u0301 "), "é"),
    "empty String": (alto, string(""), None),
    "lowest index": (page, equiv("b", 'index="1"') + equiv("a") + equiv("c", 'index="2"'), "a"),
    "without an index": (page, equiv("b", 'index="0"') + equiv("a"), "a"),
    "on lines of its own": (page, COORDS + equiv("\n  un\n  deux "), "un deux"),
    "words": (
        page,
        f"<Word>{equiv('un')}</Word><Word>{equiv('deux')}</Word><TextEquiv><Unicode/></TextEquiv>",
        "un deux",
    ),
    "line before words": (page, f"<Word>{equiv('x')}</Word>{equiv('un')}", "un"),
}


@pytest.mark.parametrize("case", TEXTS)
def test_the_text_of_a_line(case: str, tmp_path: Path) -> None:
    form, content, text = TEXTS[case]
    (line,) = read_text(tmp_path, form(f"<TextLine>{content}</TextLine>")).lines
    assert (line.id, line.text) == ("1", text)


def test_lines_of_the_same_id_and_without_one_get_names_that_no_other_has(tmp_path: Path) -> None:
    names = ["a", "a:3", "a", "", "4", "a", "a:6"]
    lines = (f'<TextLine id="{name}">{equiv(str(k))}</TextLine>' for k, name in enumerate(names))
    read = read_text(tmp_path, page("".join(lines))).lines
    assert [line.text for line in read] == [*map(str, range(7))]
    assert [line.id for line in read] == ["a", "a:3", "a:4", "5", "4", "a:7", "a:6"]


PLACES = {  # attributes and content of the TextLine; baseline, polygon and box
    "ALTO": (alto, 'BASELINE="10 44 90 46"', SHAPE, BASELINE, POLYGON, BOX),
    "brackets": (alto, 'BASELINE="(10,44)\u00a0(90,46)"', SHAPE, BASELINE, POLYGON, BOX),
    "fractions": (alto, 'BASELINE="10.0 44 90 4.6e1"', SHAPE, BASELINE, POLYGON, BOX),
    "baseline from right to left": (alto, 'BASELINE="90,46 10,44"', SHAPE, BASELINE, POLYGON, BOX),
    "upside down": (alto, 'BASELINE="90,22 10,22"', SHAPE, [[90, 22], [10, 22]], POLYGON, BOX),
    "level baseline": (
        *(alto, 'BASELINE="45" HPOS="10" VPOS="20" WIDTH="80" HEIGHT="30"', ""),
        *([[10, 45], [90, 45]], None, BOX),
    ),
    "no outline": (alto, 'BASELINE="10 44 90 44"', "", [[10, 44], [90, 44]], None, (5, 39, 93, 47)),
    "the box of the baseline": (  # as eScriptorium writes it
        *(alto, 'BASELINE="90 46 10 44" HPOS="10" VPOS="44" WIDTH="80" HEIGHT="2"', ""),
        *(BASELINE, None, (5, 39, 93, 49)),
    ),
    "the box of a vertical baseline": (
        *(alto, 'BASELINE="50 10 50 90" HPOS="50" VPOS="10" WIDTH="0" HEIGHT="80"', "<Shape/>"),
        *([[50, 10], [50, 90]], None, (47, 7, 55, 95)),  # letters stand to its right
    ),
    "a baseline that runs upwards": (
        *(alto, 'BASELINE="50 90 50 10"', ""),
        *([[50, 90], [50, 10]], None, (45, 5, 53, 93)),
    ),
    "a point": (alto, 'BASELINE="10 44 10 44"', SHAPE, None, POLYGON, BOX),
    "no numbers": (alto, 'BASELINE="?"', '<Shape><Polygon POINTS=""/></Shape>', None, None, (0, 0, 0, 0)),
    "not only numbers": (alto, 'BASELINE="10,NaN 50,26 90,25"', SHAPE, None, POLYGON, BOX),
    "a letter in a number": (alto, 'BASELINE="10,25 5O,26 90,25"', SHAPE, None, POLYGON, BOX),
    "outside": (
        *(alto, "", '<Shape><Polygon POINTS="-5 20 1e999 20 900 50"/></Shape>'),
        *(None, [[0, 20], [WIDTH, 20], [WIDTH, 50]], (0, 20, WIDTH, 50)),
    ),
    "PAGE": (page, "", COORDS, BASELINE, POLYGON, BOX),
    "empty Coords": (page, "", "<Coords/>", None, None, (0, 0, 0, 0)),
}


@pytest.mark.parametrize("case", PLACES)
def test_the_place_of_a_line(case: str, tmp_path: Path) -> None:
    form, attributes, content, baseline, polygon, box = PLACES[case]
    (line,) = read_text(tmp_path, form(f"<TextLine {attributes}>{content}</TextLine>")).lines
    assert line.box == box
    for found, expected in ((line.baseline, baseline), (line.polygon, polygon)):
        assert (None if found is None else found.tolist()) == expected


def test_extents_of_a_typical_line(tmp_path: Path) -> None:
    lines = [
        f'<TextLine BASELINE="10 {y} 90 {y}"><Shape><Polygon POINTS="{points}"/></Shape></TextLine>'
        for y, above, below in ((40, 20, 6), (80, 24, 8), (120, 60, 9))
        for points in (f"10 {y - above} 90 {y - above} 90 {y + below} 10 {y + below}",)
    ]
    without = '<TextLine BASELINE="10 180 90 180"/>'
    page = read_text(tmp_path, alto("\n".join([*lines, without])))
    assert {line.reach for line in page.lines} == {(24.0, 8.0)}
    assert page.lines[-1].box == (0, 180 - 24, 90 + 8, 180 + 8)
    assert read_text(tmp_path, alto(without)).lines[0].reach is None


def test_lines_with_only_a_baseline_reach_as_far_as_lines_are_apart(tmp_path: Path) -> None:
    text = "".join(f'<TextLine BASELINE="10 {y} 90 {y}"/>' for y in (60, 90, 120))
    boxes = [line.box for line in read_text(tmp_path, alto(text)).lines]
    assert [box[1::2] for box in boxes] == [(y - 21, y + 11) for y in (60, 90, 120)]


TOPLINE, UPRIGHT = "90 {} 10 {}", "10 {} 90 {}"  # above its letters and leftwards, and the usual one
DRAWN = {  # the baseline of each line, the text of all; the lines that are turned
    "Hebrew": ([TOPLINE], "\u05d0\u05d1", [True]),
    "Hebrew without texts": ([TOPLINE, TOPLINE, UPRIGHT], "", [True, True, False]),
    "one line without a text": ([TOPLINE], "", [False]),
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
    for line, baseline, turned in zip(
        read_text(tmp_path, alto("".join(lines))).lines, baselines, is_turned, strict=True
    ):
        assert line.baseline is not None
        begins = [90, 10][turned or baseline == UPRIGHT]
        assert line.baseline[0, 0] == begins


VERSIONS = {
    "ALTO 2": alto("<TextLine/>", namespace="http://www.loc.gov/standards/alto/ns-v2#"),
    "no namespace": alto("<TextLine/>").replace(' xmlns="http://www.loc.gov/standards/alto/ns-v4#"', ""),
    "a prefix": re.sub(r"<(/?)([A-Z])", r"<\1a:\2", alto("<TextLine/>"))
    .replace("<alto xmlns", "<a:alto xmlns:a")
    .replace("</alto", "</a:alto"),
    "PAGE 2013": page(
        "<TextLine/>", namespace="http://schema.primaresearch.org/PAGE/gts/pagecontent/2013-07-15"
    ),
    "UTF-8 with a mark": b"\xef\xbb\xbf" + alto("<TextLine/>").encode(),
    "Latin-1": alto("<!-- é --><TextLine/>").replace("UTF-8", "ISO-8859-1").encode("latin-1"),
    "Shift JIS": alto("<!-- \u7aef --><TextLine/>").replace("UTF-8", "Shift_JIS").encode("shift-jis"),
    "Windows lines": alto("<TextLine/>").replace("\n", "\r\n"),
    "a path": alto("<TextLine/>", image="D:\\scans\\a.png"),
    "an address": page("<TextLine/>", image="https://example.org/iiif/a.png"),
    "another name": alto("<TextLine/>", image="gone.tif"),
    "no name": alto("<TextLine/>", image=""),
    "no extents": alto("<TextLine/>", size='WIDTH="0" HEIGHT="0"'),
    "nested blocks": alto(
        '</TextBlock><ComposedBlock ID="c"><TextBlock ID="d"><TextLine/></TextBlock></ComposedBlock>'
        '<TextBlock ID="e">'
    ),
}


@pytest.mark.parametrize("case", VERSIONS)
def test_versions_encodings_and_nesting_are_read_and_written(case: str, tmp_path: Path) -> None:
    read_back = read_text(tmp_path, VERSIONS[case])
    assert is_page(tmp_path / "a.xml")
    assert (read_back.image, read_back.width, read_back.height) == (tmp_path / "a.png", WIDTH, HEIGHT)
    assert [line.text for line in read_back.lines] == [None]
    write_page(read_back, {}, tmp_path / "same.xml")
    assert (tmp_path / "same.xml").read_bytes() == (tmp_path / "a.xml").read_bytes()
    write_page(read_back, {"1": transcription('é <\u2014&> "b"\'\x00')}, tmp_path / "a.xml")
    assert [line.text for line in read_page(tmp_path / "a.xml").lines] == ['é <\u2014&> "b"\'\ufffd']


BAD = {
    "millimetres": (alto("", unit="mm10"), "coordinates in mm10, expected pixels"),
    "PAGE of 2010": (
        page('<TextLine id="a"><Coords><Point x="1" y="2"/></Coords></TextLine>'),
        "holds <Point>, as PAGE XML before 2013; convert it to 2013 or later",
    ),
    "another shape": (
        alto("", size='WIDTH="200" HEIGHT="300"'),
        r"an image of 200x300 pixels, but a.png has 300x200",
    ),
    "extents with separators": (
        alto("", size='WIDTH="1,000" HEIGHT="200"'),
        r"an image of 1x200 pixels, but a.png has 300x200",
    ),
    "a document type": (
        alto("").replace("<!-- drawn -->", '<!DOCTYPE alto [<!ENTITY a "b">]>'),
        "a document type",
    ),
    "not well-formed": (alto("<TextLine>"), "not well-formed XML: mismatched tag in line"),
    "empty": ("", "not well-formed XML: no element found"),
    "wrong encoding": (alto("é").encode("latin-1"), "not in the encoding UTF-8"),
    "unknown encoding": (alto("").replace("UTF-8", "what"), "not in the encoding what"),
    "another root": ("<html/>", "holds <html>, expected ALTO"),
    "two pages": (alto("</TextBlock></PrintSpace></Page><Page><PrintSpace><TextBlock>"), "holds 2 pages"),
    "no page": ("<alto/>", "holds 0 pages"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_files_are_one_line(case: str, tmp_path: Path) -> None:
    text, message = BAD[case]
    with pytest.raises(InputError, match=message) as caught:
        read_text(tmp_path, text)
    assert "\n" not in str(caught.value) and str(tmp_path / "a.xml") in str(caught.value)


def test_a_page_without_its_image_and_one_that_is_none(tmp_path: Path) -> None:
    (tmp_path / "b.xml").write_text(alto("", image="../x/b.jpg"))
    with pytest.raises(InputError, match=r"has no image; expected b\.jpg, which it names, or b"):
        read_page(tmp_path / "b.xml")
    (tmp_path / "d.xml").write_text(alto("", image=f"{'d' * 300}.jpg"))
    with pytest.raises(InputError, match="has no image; expected ddd"):
        read_page(tmp_path / "d.xml")
    (tmp_path / "b.jpg").write_text("no image")
    with pytest.raises(InputError, match=r"b\.jpg .*image"):
        read_page(tmp_path / "b.xml")
    with pytest.raises(InputError, match="there is no file"):
        read_page(tmp_path / "c.xml")


@pytest.mark.parametrize("folder", ["page", "PAGE"])
def test_transkribus_puts_pages_in_a_subfolder(folder: str, tmp_path: Path) -> None:
    write_noise(tmp_path / "a.png")
    (tmp_path / folder).mkdir()
    (tmp_path / folder / "a.xml").write_text(page("<TextLine/>"))
    assert read_page(tmp_path / folder / "a.xml").image == tmp_path / "a.png"


def test_a_unit_may_be_written_in_capitals(tmp_path: Path) -> None:
    assert not read_text(tmp_path, alto("", unit="Pixel")).lines


def test_other_files_are_no_pages(tmp_path: Path) -> None:
    for name, text in {"a.xml": "<mets/>", "b.xml": "text", "c.txt": alto("")}.items():
        (tmp_path / name).write_text(text)
        assert not is_page(tmp_path / name)
    assert not is_page(tmp_path / "gone.xml")


def test_coordinates_are_scaled_to_the_image(tmp_path: Path) -> None:
    text = alto(f'<TextLine BASELINE="10 44 90 46">{SHAPE}</TextLine>', size='WIDTH="600" HEIGHT="400"')
    (line,) = read_text(tmp_path, text).lines
    assert line.polygon is not None and line.polygon.tolist() == (np.array(POLYGON) / 2).tolist()
    assert line.box == (5, 10, 45, 25)


@pytest.mark.parametrize("form", ["png", "tif"])  # Pillow turns the extents of a TIFF on its own
@pytest.mark.parametrize("orientation", range(1, 9))
def test_lines_lie_on_the_upright_image(orientation: int, form: str, tmp_path: Path) -> None:
    """Where a file counts in the extents of the stored image, its lines are turned with the image."""
    stored = np.full((HEIGHT, WIDTH), 230, np.uint8)
    stored[20:50, 10:90] = 0
    exif = Image.Exif()
    exif[0x0112] = orientation
    image = tmp_path / f"a.{form}"
    Image.fromarray(stored).save(image, exif=exif)
    upright = decode_image(image.read_bytes(), image.name)
    is_sideways = upright.shape != stored.shape
    of_upright = f'WIDTH="{upright.shape[1]}" HEIGHT="{upright.shape[0]}"'
    for size in ("", of_upright) if is_sideways else (of_upright,):
        rows, columns = np.nonzero(upright == 0) if size else np.nonzero(stored == 0)
        left, top, right, bottom = columns.min(), rows.min(), columns.max() + 1, rows.max() + 1
        place = f'HPOS="{left}" VPOS="{top}" WIDTH="{right - left}" HEIGHT="{bottom - top}"'
        found = read_text(tmp_path, alto(f"<TextLine {place}/>", size=size))
        (line,) = found.lines
        assert (found.height, found.width) == upright.shape
        left, top, right, bottom = line.box
        assert not upright[top:bottom, left:right].any()
        assert (right - left) * (bottom - top) == 80 * 30


def test_an_empty_string_adds_no_blank(tmp_path: Path) -> None:
    (line,) = read_text(tmp_path, alto(f"<TextLine>{string('un', '', 'deux')}</TextLine>")).lines
    assert line.text == "un deux"


def test_a_baseline_beyond_the_page_is_none(tmp_path: Path) -> None:
    write_noise(tmp_path / "a.png")
    line = (
        f'<TextLine ID="l" HPOS="9" VPOS="9" WIDTH="9" HEIGHT="9" BASELINE="{WIDTH + 9} 9 {WIDTH + 99} 9"/>'
    )
    (tmp_path / "a.xml").write_text(alto(line))
    assert read_page(tmp_path / "a.xml").lines[0].baseline is None


def test_a_box_that_no_number_holds_is_clipped(tmp_path: Path) -> None:
    place = 'HPOS="-1e999" VPOS="20" WIDTH="1e999" HEIGHT="30"'
    (line,) = read_text(tmp_path, alto(f"<TextLine {place}/>")).lines
    assert line.box == (0, 20, 0, 50)


def test_the_suffix_of_an_image_may_be_in_capitals(tmp_path: Path) -> None:
    write_noise(tmp_path / "b.png")
    (tmp_path / "b.png").rename(tmp_path / "b.PNG")
    (tmp_path / "b.xml").write_text(alto("", image=""))
    assert read_page(tmp_path / "b.xml").image.samefile(tmp_path / "b.PNG")


def test_words_inside_of_words_are_not_followed(tmp_path: Path) -> None:
    (line,) = read_text(tmp_path, page(f"<TextLine>{'<Word>' * 5000}{'</Word>' * 5000}</TextLine>")).lines
    assert line.text is None
