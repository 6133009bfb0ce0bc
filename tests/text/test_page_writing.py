"""Writing ALTO and PAGE XML changes texts and confidences alone."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from helpers.pages import COORDS, SHAPE, alto, equiv, page, read_text, string, transcription

from mdlstm_tk.errors import InputError
from mdlstm_tk.text import Character, ReadLine
from mdlstm_tk.text.pages import read_page, write_page

CONF = 'conf="0.9000"'

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
    "a blank that is none of XML": (
        *(alto, string("M.", "Duval"), "M.\u00a0Duval"),
        '<String CONTENT="M.\u00a0Duval" WC="0.9000"/>',
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
    before = read_text(tmp_path, form(around.format(content)))
    write_page(before, {"l": transcription(text)}, tmp_path / "new/b.xml")
    assert (tmp_path / "new/b.xml").read_text() == form(around.format(expected))
    write_page(before, {"l": transcription(text)}, tmp_path / "a.xml")
    after = read_page(tmp_path / "a.xml")
    assert [line.text for line in after.lines] == [None, text, None]
    assert [line.id for line in after.lines] == ["m", "l", "n"]
    assert [line.box for line in after.lines] == [line.box for line in before.lines]


@pytest.mark.parametrize(
    ("text", "custom"), [("ab", "a {offset:0;} b {index:0;} c {x:1; offset:1;}"), ("cd", "b {index:0;}")]
)
def test_places_in_a_text_that_changes_are_removed(text: str, custom: str, tmp_path: Path) -> None:
    """Of `custom`, as Transkribus writes it."""
    line = (
        f'<TextLine custom="a {{offset:0;}} b {{index:0;}} c {{x:1; offset:1;}}">{equiv("ab")}</TextLine>'
    )
    write_page(read_text(tmp_path, page(line)), {"1": transcription(text)}, tmp_path / "b.xml")
    assert f'<TextLine custom="{custom}">' in (tmp_path / "b.xml").read_text()


def test_lines_without_or_with_equal_ids_are_told_apart(tmp_path: Path) -> None:
    lines = "<TextLine/><TextLine/>" + '<TextLine ID="x"/><TextLine ID="x"/>'
    before = read_text(tmp_path, alto(lines))
    assert [line.id for line in before.lines] == ["1", "2", "x", "x:4"]
    write_page(before, {"2": transcription("b"), "x:4": transcription("d")}, tmp_path / "a.xml")
    assert [line.text for line in read_page(tmp_path / "a.xml").lines] == [None, "b", None, "d"]
    with pytest.raises(InputError, match="has no line 9"):
        write_page(before, {"9": transcription("b")}, tmp_path / "a.xml")


def test_the_text_of_a_region_follows_its_lines(tmp_path: Path) -> None:
    lines = "".join(f'<TextLine id="l{k}">{equiv(text)}</TextLine>' for k, text in enumerate("ab"))
    before = read_text(tmp_path, page(lines + equiv("a\nb", 'conf="0.2"')))
    write_page(before, {"l1": transcription("c")}, tmp_path / "b.xml")
    assert "<Unicode>a\nc</Unicode></TextEquiv>\n    </TextRegion>" in (tmp_path / "b.xml").read_text()
    assert 'conf="0.2"' not in (tmp_path / "b.xml").read_text()


def test_the_text_of_a_region_is_that_of_all_lines_inside(tmp_path: Path) -> None:
    """Also of lines in regions inside it."""

    def region(name: str, line: str, *regions: str) -> str:
        content = f'<TextLine id="{line}">{equiv("old")}</TextLine>' if line else ""
        return f'<TextRegion id="{name}">{content}{"".join(regions)}{equiv("old")}</TextRegion>'

    inside = region("r1", "l1", region("r2", "l2")) + region("r3", "", region("r4", "l3"))
    before = read_text(tmp_path, page(inside))
    texts = {"l1": transcription("a"), "l2": transcription("b"), "l3": transcription("c")}
    write_page(before, texts, tmp_path / "b.xml")
    written = re.findall(
        r"<Unicode>([^<]*)</Unicode></TextEquiv></TextRegion>", (tmp_path / "b.xml").read_text()
    )
    assert written == ["b", "a\nb", "c", "c"]


def test_the_confidence_of_a_word_is_that_of_its_characters(tmp_path: Path) -> None:
    sure, unsure = transcription("ab", 1.0), transcription(" c", 0.25)
    both = sure._replace(text="ab c", confidence=0.625, characters=sure.characters + unsure.characters)
    before = read_text(tmp_path, alto(f"<TextLine>{string('x', 'y')}</TextLine>"))
    write_page(before, {"1": both}, tmp_path / "b.xml")
    assert re.findall(r'WC="(.*?)"', (tmp_path / "b.xml").read_text()) == ["1.0000", "0.2500"]
    before = read_text(tmp_path, alto(f"<TextLine>{string('x')}</TextLine>"))
    write_page(before, {"1": both}, tmp_path / "b.xml")
    assert re.findall(r'WC="(.*?)"', (tmp_path / "b.xml").read_text()) == ["0.6250"]


def test_a_word_may_hold_characters_of_two_letters(tmp_path: Path) -> None:
    letters = (("ch", 0.5), (" ", 1.0), ("a", 0.25))
    characters = tuple(Character(text, 0, 1, confidence) for text, confidence in letters)
    before = read_text(tmp_path, alto(f"<TextLine>{string('x', 'y')}</TextLine>"))
    write_page(before, {"1": ReadLine("ch a", 0.5, characters)}, tmp_path / "b.xml")
    assert re.findall(r'WC="(.*?)"', (tmp_path / "b.xml").read_text()) == ["0.5000", "0.2500"]


def test_a_hyphen_that_stands_alone_goes_with_the_former_text(tmp_path: Path) -> None:
    before = read_text(tmp_path, alto('<TextLine><HYP CONTENT="-"/></TextLine>'))
    write_page(before, {"1": transcription("a")}, tmp_path / "a.xml")
    assert [line.text for line in read_page(tmp_path / "a.xml").lines] == ["a"]
