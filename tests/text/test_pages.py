"""ALTO and PAGE XML: what is read of them, and that writing changes texts and confidences alone."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
from helpers.pages import HEIGHT, WIDTH, alto, page, transcription, write_noise
from PIL import Image

from mdlstm_tk.errors import InputError
from mdlstm_tk.runtime.preprocessing import decode_image
from mdlstm_tk.text import Character, Transcription
from mdlstm_tk.text.pages import Page, is_page, read_page, write_page

OUTLINE = "10 20 90 20 90 50 10 50"
PAIRS = "10,20 90,20 90,50 10,50"
POLYGON = [[10, 20], [90, 20], [90, 50], [10, 50]]
BASELINE = [[10, 44], [90, 46]]
BOX = (10, 20, 90, 50)
SHAPE = f'<Shape><Polygon POINTS="{OUTLINE}"/></Shape>'
CONF = 'conf="0.9000"'
COORDS = f'<Coords points="{PAIRS}"/><Baseline points="10,44 90,46"/>'


def read(folder: Path, text: str | bytes) -> Page:
    if not any(path.suffix in (".png", ".tif") for path in folder.iterdir()):
        write_noise(folder / "a.png")
    (folder / "a.xml").write_bytes(text if isinstance(text, bytes) else text.encode())
    return read_page(folder / "a.xml")


def string(*texts: str, between: str = "<SP/>") -> str:
    return between.join(f'<String CONTENT="{text}"/>' for text in texts)


def equiv(text: str, attributes: str = "") -> str:
    return f"<TextEquiv{attributes and ' '}{attributes}><Unicode>{text}</Unicode></TextEquiv>"


TEXTS = {  # what is inside the TextLine, and its text
    "Strings": (alto, SHAPE + string("un", "deux", between=""), "un deux"),
    "HYP": (alto, string("un", "deu") + '<HYP CONTENT="-"/>', "un deu-"),
    "decomposed": (alto, string("e\u0301 "), "é"),
    "empty String": (alto, string(""), None),
    "lowest index": (page, equiv("b", 'index="1"') + equiv("a") + equiv("c", 'index="2"'), "a"),
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
    (line,) = read(tmp_path, form(f"<TextLine>{content}</TextLine>")).lines
    assert (line.id, line.text) == ("1", text)


PLACES = {  # attributes and content of the TextLine; baseline, polygon and box
    "ALTO": (alto, 'BASELINE="10 44 90 46"', SHAPE, BASELINE, POLYGON, BOX),
    "fractions": (alto, 'BASELINE="10.0 44 90 4.6e1"', SHAPE, BASELINE, POLYGON, BOX),
    "baseline from right to left": (alto, 'BASELINE="90,46 10,44"', SHAPE, BASELINE, POLYGON, BOX),
    "upside down": (alto, 'BASELINE="90,22 10,22"', SHAPE, [[90, 22], [10, 22]], POLYGON, BOX),
    "level baseline": (
        *(alto, 'BASELINE="45" HPOS="10" VPOS="20" WIDTH="80" HEIGHT="30"', ""),
        *([[10, 45], [90, 45]], None, BOX),
    ),
    "no outline": (alto, 'BASELINE="10 44 90 44"', "", [[10, 44], [90, 44]], None, (6, 40, 92, 46)),
    "the box of the baseline": (  # as eScriptorium writes it
        *(alto, 'BASELINE="90 46 10 44" HPOS="10" VPOS="44" WIDTH="80" HEIGHT="2"', ""),
        *(BASELINE, None, (6, 40, 92, 48)),
    ),
    "the box of a vertical baseline": (
        *(alto, 'BASELINE="50 10 50 90" HPOS="50" VPOS="10" WIDTH="0" HEIGHT="80"', "<Shape/>"),
        *([[50, 10], [50, 90]], None, (46, 6, 52, 92)),
    ),
    "a point": (alto, 'BASELINE="10 44 10 44"', SHAPE, None, POLYGON, BOX),
    "no numbers": (alto, 'BASELINE="?"', '<Shape><Polygon POINTS=""/></Shape>', None, None, (0, 0, 0, 0)),
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
    (line,) = read(tmp_path, form(f"<TextLine {attributes}>{content}</TextLine>")).lines
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
    page = read(tmp_path, alto("\n".join([*lines, without])))
    assert {line.reach for line in page.lines} == {(24.0, 8.0)}
    assert page.lines[-1].box == (0, 180 - 24, 90 + 8, 180 + 8)
    assert read(tmp_path, alto(without)).lines[0].reach is None


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
        read(tmp_path, alto("".join(lines))).lines, baselines, is_turned, strict=True
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
    read_back = read(tmp_path, VERSIONS[case])
    assert is_page(tmp_path / "a.xml")
    assert (read_back.image, read_back.width, read_back.height) == (tmp_path / "a.png", WIDTH, HEIGHT)
    assert [line.text for line in read_back.lines] == [None]
    write_page(read_back, {}, tmp_path / "same.xml")
    assert (tmp_path / "same.xml").read_bytes() == (tmp_path / "a.xml").read_bytes()
    write_page(read_back, {"1": transcription('é <\u2014&> "b"\'\x00')}, tmp_path / "a.xml")
    assert [line.text for line in read_page(tmp_path / "a.xml").lines] == ['é <\u2014&> "b"\'\ufffd']


BAD = {
    "millimetres": (alto("", unit="mm10"), "coordinates in mm10, expected pixels"),
    "another shape": (
        alto("", size='WIDTH="200" HEIGHT="300"'),
        r"an image of 200x300 pixels, but a.png has 300x200",
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
        read(tmp_path, text)
    assert "\n" not in str(caught.value) and str(tmp_path / "a.xml") in str(caught.value)


def test_a_page_without_its_image_and_one_that_is_none(tmp_path: Path) -> None:
    (tmp_path / "b.xml").write_text(alto("", image="../x/b.jpg"))
    with pytest.raises(InputError, match=r"has no image; expected b\.jpg, which it names, or b"):
        read_page(tmp_path / "b.xml")
    (tmp_path / "d.xml").write_text(alto("", image=f"{'d' * 300}.jpg"))
    with pytest.raises(InputError, match="has no image; expected ddd"):
        read_page(tmp_path / "d.xml")
    (tmp_path / "b.jpg").write_text("no image")
    with pytest.raises(InputError, match=r"b\.jpg is no image"):
        read_page(tmp_path / "b.xml")
    with pytest.raises(InputError, match="there is no file"):
        read_page(tmp_path / "c.xml")


def test_transkribus_puts_pages_in_a_subfolder(tmp_path: Path) -> None:
    write_noise(tmp_path / "a.png")
    (tmp_path / "page").mkdir()
    (tmp_path / "page/a.xml").write_text(page("<TextLine/>"))
    assert read_page(tmp_path / "page/a.xml").image == tmp_path / "a.png"


def test_other_files_are_no_pages(tmp_path: Path) -> None:
    for name, text in {"a.xml": "<mets/>", "b.xml": "text", "c.txt": alto("")}.items():
        (tmp_path / name).write_text(text)
        assert not is_page(tmp_path / name)
    assert not is_page(tmp_path / "gone.xml")


def test_coordinates_are_scaled_to_the_image(tmp_path: Path) -> None:
    text = alto(f'<TextLine BASELINE="10 44 90 46">{SHAPE}</TextLine>', size='WIDTH="600" HEIGHT="400"')
    (line,) = read(tmp_path, text).lines
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
        found = read(tmp_path, alto(f"<TextLine {place}/>", size=size))
        (line,) = found.lines
        assert (found.height, found.width) == upright.shape
        left, top, right, bottom = line.box
        assert not upright[top:bottom, left:right].any()
        assert (right - left) * (bottom - top) == 80 * 30


WRITTEN = {  # content of a line, the text to write, and the content afterwards; confidences are 0.9
    "the same text": (
        alto,
        '<String CONTENT="a" CC="0"/>',
        "a",
        '<String CONTENT="a" CC="0" WC="0.9000"/>',
    ),
    "attributes around": (
        *(alto, "<String ID='s' CONTENT = 'old'  WC=\"0.1\" CC='1 1' />", "a b"),
        '<String ID=\'s\' CONTENT = "a b"  WC="0.9000" />',
    ),
    "word by word": (
        *(alto, string("un", "deux"), "eins zwei"),
        '<String CONTENT="eins" WC="0.9000"/><SP/><String CONTENT="zwei" WC="0.9000"/>',
    ),
    "other words": (alto, string("un", "deux"), "a b c", '<String CONTENT="a b c" WC="0.9000"/>'),
    "HYP": (
        alto,
        string("un", "de") + '<HYP CONTENT="-"/>',
        "a b-",
        '<String CONTENT="a b-" WC="0.9000"/>',
    ),
    "glyphs": (
        *(
            alto,
            '<String CONTENT="a"><Shape/><ALTERNATIVE>b</ALTERNATIVE> <Glyph CONTENT="a"/></String>',
            "c",
        ),
        '<String CONTENT="c" WC="0.9000"><Shape/></String>',
    ),
    "no String": (
        *(alto, f"\n  {SHAPE}\n", "a"),
        f'\n  {SHAPE}\n  <String CONTENT="a" WC="0.9000"/>\n',
    ),
    "the main one": (
        *(page, f'<TextEquiv index="1"/>{equiv("b", "index=" + chr(34) + "0" + chr(34))}', "c"),
        '<TextEquiv index="1"/><TextEquiv index="0" conf="0.9000"><Unicode>c</Unicode></TextEquiv>',
    ),
    "no TextEquiv": (
        *(page, f"\n  {COORDS}\n  <TextStyle/>\n", "a"),
        f'\n  {COORDS}<TextEquiv conf="0.9000"><Unicode>a</Unicode></TextEquiv>\n  <TextStyle/>\n',
    ),
    "an empty Unicode": (
        *(page, '<TextEquiv conf="0.1"><PlainText>x</PlainText><Unicode/></TextEquiv>', "a<b"),
        '<TextEquiv conf="0.9000"><Unicode>a&lt;b</Unicode></TextEquiv>',
    ),
    "an empty TextEquiv": (
        page,
        "<TextEquiv/>",
        "a",
        '<TextEquiv conf="0.9000"><Unicode>a</Unicode></TextEquiv>',
    ),
    "words": (
        *(page, f'<Word id="v">{equiv("x")}</Word><Word id="w"/>{equiv("x y")}', "a b"),
        f'<Word id="v">{equiv("a", CONF)}</Word><Word id="w">{equiv("b", CONF)}</Word>{equiv("a b", CONF)}',
    ),
    "blank Strings": (
        *(alto, string("un", " ", "", "deux", between=""), "eins zwei"),
        '<String CONTENT="eins" WC="0.9000"/><String CONTENT=" "/><String CONTENT=""/>'
        '<String CONTENT="zwei" WC="0.9000"/>',
    ),
    "the whole line in a String with a place": (
        *(alto, f'<String CONTENT="a" HPOS="1">{SHAPE}</String><String CONTENT="b"/>', "c"),
        '<String CONTENT="c" WC="0.9000"></String>',
    ),
    "blank words": (  # of kraken
        *(page, f"<Word>{equiv('x')}</Word><Word>{equiv(' ')}</Word><Word>{equiv('y')}</Word>", "a b"),
        f"<Word>{equiv('a', CONF)}</Word><Word>{equiv(' ')}</Word><Word>{equiv('b', CONF)}</Word>"
        f"{equiv('a b', CONF)}",
    ),
    "as many words as with blanks": (
        *(page, f"<Word>{equiv('x')}</Word><Word>{equiv(' ')}</Word><Word>{equiv('y')}</Word>", "a b c"),
        f"<Word></Word><Word></Word><Word></Word>{equiv('a b c', CONF)}",
    ),
    "places in words": (
        *(
            page,
            f'<Word custom="abbrev {{offset:0; length:1;}}">{equiv("x y")}</Word>{equiv("x y")}',
            "a b",
        ),
        f"<Word></Word>{equiv('a b', CONF)}",
    ),
    "other words of PAGE": (
        *(page, f'<Word id="v"><Glyph/>{equiv("x")}</Word>{equiv("x")}', "a b"),
        f'<Word id="v"></Word>{equiv("a b", CONF)}',
    ),
}


@pytest.mark.parametrize("case", WRITTEN)
def test_what_writing_changes(case: str, tmp_path: Path) -> None:
    form, content, text, expected = WRITTEN[case]
    around = '<TextLine ID="m"/><TextLine ID="l">{}</TextLine><TextLine ID="n"/>'
    before = read(tmp_path, form(around.format(content)))
    write_page(before, {"l": transcription(text)}, tmp_path / "new/b.xml")
    written, mark = (tmp_path / "new/b.xml").read_text(), "<?mdlstm-tk a model has read this page?>\n"
    assert written.count(mark) == 1
    assert written.replace(mark, "") == form(around.format(expected))
    write_page(before, {"l": transcription(text)}, tmp_path / "a.xml")
    after = read_page(tmp_path / "a.xml")
    assert [line.text for line in after.lines] == [None, text, None]
    assert [line.id for line in after.lines] == ["m", "l", "n"]
    assert [line.box for line in after.lines] == [line.box for line in before.lines]
    write_page(after, {"l": transcription(text)}, tmp_path / "a.xml")
    assert (tmp_path / "a.xml").read_text().count(mark) == 1


@pytest.mark.parametrize(
    ("text", "custom"), [("ab", "a {offset:0;} b {index:0;} c {x:1; offset:1;}"), ("cd", "b {index:0;}")]
)
def test_places_in_a_text_that_changes_are_removed(text: str, custom: str, tmp_path: Path) -> None:
    """Of `custom`, as Transkribus writes it."""
    line = (
        f'<TextLine custom="a {{offset:0;}} b {{index:0;}} c {{x:1; offset:1;}}">{equiv("ab")}</TextLine>'
    )
    write_page(read(tmp_path, page(line)), {"1": transcription(text)}, tmp_path / "b.xml")
    assert f'<TextLine custom="{custom}">' in (tmp_path / "b.xml").read_text()


def test_lines_without_or_with_equal_ids_are_told_apart(tmp_path: Path) -> None:
    lines = "<TextLine/><TextLine/>" + '<TextLine ID="x"/><TextLine ID="x"/>'
    before = read(tmp_path, alto(lines))
    assert [line.id for line in before.lines] == ["1", "2", "x", "x:4"]
    write_page(before, {"2": transcription("b"), "x:4": transcription("d")}, tmp_path / "a.xml")
    assert [line.text for line in read_page(tmp_path / "a.xml").lines] == [None, "b", None, "d"]
    with pytest.raises(InputError, match="has no line 9"):
        write_page(before, {"9": transcription("b")}, tmp_path / "a.xml")


def test_the_text_of_a_region_follows_its_lines(tmp_path: Path) -> None:
    lines = "".join(f'<TextLine id="l{k}">{equiv(text)}</TextLine>' for k, text in enumerate("ab"))
    before = read(tmp_path, page(lines + equiv("a\nb", 'conf="0.2"')))
    write_page(before, {"l1": transcription("c")}, tmp_path / "b.xml")
    assert "<Unicode>a\nc</Unicode></TextEquiv>\n    </TextRegion>" in (tmp_path / "b.xml").read_text()
    assert 'conf="0.2"' not in (tmp_path / "b.xml").read_text()


def test_the_text_of_a_region_is_that_of_all_lines_inside(tmp_path: Path) -> None:
    """Also of lines in regions inside it."""

    def region(name: str, line: str, *regions: str) -> str:
        content = f'<TextLine id="{line}">{equiv("old")}</TextLine>' if line else ""
        return f'<TextRegion id="{name}">{content}{"".join(regions)}{equiv("old")}</TextRegion>'

    inside = region("r1", "l1", region("r2", "l2")) + region("r3", "", region("r4", "l3"))
    before = read(tmp_path, page(inside))
    texts = {"l1": transcription("a"), "l2": transcription("b"), "l3": transcription("c")}
    write_page(before, texts, tmp_path / "b.xml")
    written = re.findall(
        r"<Unicode>([^<]*)</Unicode></TextEquiv></TextRegion>", (tmp_path / "b.xml").read_text()
    )
    assert written == ["b", "a\nb", "c", "c"]


def test_the_confidence_of_a_word_is_that_of_its_characters(tmp_path: Path) -> None:
    sure, unsure = transcription("ab", 1.0), transcription(" c", 0.25)
    both = sure._replace(text="ab c", confidence=0.625, characters=sure.characters + unsure.characters)
    before = read(tmp_path, alto(f"<TextLine>{string('x', 'y')}</TextLine>"))
    write_page(before, {"1": both}, tmp_path / "b.xml")
    assert re.findall(r'WC="(.*?)"', (tmp_path / "b.xml").read_text()) == ["1.0000", "0.2500"]
    before = read(tmp_path, alto(f"<TextLine>{string('x')}</TextLine>"))
    write_page(before, {"1": both}, tmp_path / "b.xml")
    assert re.findall(r'WC="(.*?)"', (tmp_path / "b.xml").read_text()) == ["0.6250"]


def test_an_empty_string_adds_no_blank(tmp_path: Path) -> None:
    (line,) = read(tmp_path, alto(f"<TextLine>{string('un', '', 'deux')}</TextLine>")).lines
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
    (line,) = read(tmp_path, alto(f"<TextLine {place}/>")).lines
    assert line.box == (0, 20, 0, 50)


def test_the_suffix_of_an_image_may_be_in_capitals(tmp_path: Path) -> None:
    write_noise(tmp_path / "b.png")
    (tmp_path / "b.png").rename(tmp_path / "b.PNG")
    (tmp_path / "b.xml").write_text(alto("", image=""))
    assert read_page(tmp_path / "b.xml").image.samefile(tmp_path / "b.PNG")


def test_a_word_may_hold_characters_of_two_letters(tmp_path: Path) -> None:
    letters = (("ch", 0.5), (" ", 1.0), ("a", 0.25))
    characters = tuple(Character(text, 0, 1, confidence) for text, confidence in letters)
    before = read(tmp_path, alto(f"<TextLine>{string('x', 'y')}</TextLine>"))
    write_page(before, {"1": Transcription("ch a", 0.5, characters)}, tmp_path / "b.xml")
    assert re.findall(r'WC="(.*?)"', (tmp_path / "b.xml").read_text()) == ["0.5000", "0.2500"]


def test_a_hyphen_that_stands_alone_goes_with_the_former_text(tmp_path: Path) -> None:
    before = read(tmp_path, alto('<TextLine><HYP CONTENT="-"/></TextLine>'))
    write_page(before, {"1": transcription("a")}, tmp_path / "a.xml")
    assert [line.text for line in read_page(tmp_path / "a.xml").lines] == ["a"]


def test_words_inside_of_words_are_not_followed(tmp_path: Path) -> None:
    (line,) = read(tmp_path, page(f"<TextLine>{'<Word>' * 5000}{'</Word>' * 5000}</TextLine>")).lines
    assert line.text is None
