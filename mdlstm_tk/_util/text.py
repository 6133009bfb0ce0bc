"""Text from outside, such as the names of files and classes: how it is printed, written and checked.

Names in a stranger's files may hold commands for the terminal, line breaks that forge a second line of
output, or controls that turn the order of the characters around. Every way out of this package therefore
passes through one of these functions. Ordinary Unicode stays as it is, including the joiners that emoji and
Indic scripts need.

printable     for people: terminals, logs, error messages, pages and plots
to_json       for JSON

`duration` spells a time as people say it, `reason_of` the message of another library's exception, and
`suggestion` what an unknown word may have meant.
"""

from __future__ import annotations

import json
import re
import unicodedata
from collections.abc import Iterable
from typing import Any

# Control characters (C0, DEL, C1), line and paragraph separators, bidirectional controls, and surrogates,
# which stand for the bytes of file names that are not UTF-8.
_UNSAFE = re.compile("[\0-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u206f\ud800-\udfff]")


def is_plain_text(text: str) -> bool:
    """True if a text holds no control character, no separator of lines or paragraphs, no bidirectional
    control and no surrogate."""
    return _UNSAFE.search(text) is None


def printable(text: object) -> str:
    r"""A text as people may see it: unsafe characters become escapes such as `\n`, `\x1b` and `\u202e`.

    A backslash stays as it is, since paths on Windows are full of them.
    """
    return _UNSAFE.sub(lambda match: match[0].encode("unicode_escape").decode(), str(text))


def to_json(value: Any, indent: int | None = None) -> str:
    r"""JSON that every parser takes: NaN and infinity become null, and unsafe characters `\u` escapes.

    The surrogates of a file name that is not UTF-8 are escaped, too, so that Python's `os.fsencode` makes
    the exact name of what `json.loads` returns.
    """
    try:
        text = json.dumps(value, indent=indent, ensure_ascii=False, allow_nan=False)
    except ValueError:
        value = json.loads(json.dumps(value), parse_constant=lambda _: None)
        text = json.dumps(value, indent=indent, ensure_ascii=False)
    # json.dumps has escaped C0; what is left lies inside strings, but for the line breaks of `indent`.
    return _UNSAFE.sub(lambda match: "\n" if match[0] == "\n" else f"\\u{ord(match[0]):04x}", text)


def counted(number: int, one: str, many: str | None = None) -> str:
    """A number with the words for one or for several things; None: `one` with an s.

    >>> counted(1, "text is", "texts are"), counted(3, "step")
    ('1 text is', '3 steps')
    """
    return f"{number} {one if number == 1 else many or f'{one}s'}"


def composed(text: str) -> str:
    """A text in Unicode's composed form (NFC), in which é is one character however it was typed."""
    return unicodedata.normalize("NFC", text)


def reason_of(error: BaseException) -> str:
    """The message of another library's exception in one short line, or the name of its class."""
    return printable(" ".join(str(error).split())[:200] or type(error).__name__)


def suggestion(word: str, known: Iterable[str]) -> str:
    """The end of an error message about an unknown word: the closest known one, or all of them.

    >>> suggestion("stabel", ["graves", "stable"]), suggestion("lstm", ["graves", "stable"])
    ("did you mean 'stable'?", 'choose one of graves, stable')
    """
    from difflib import get_close_matches  # imported late: most words are known

    known = list(known)
    close = get_close_matches(word.lower(), known, n=1)
    return f"did you mean '{close[0]}'?" if close else f"choose one of {', '.join(known)}"


def duration(seconds: float) -> str:
    """A time as people say it.

    >>> duration(0.004), duration(0.17), duration(75), duration(7500)
    ('less than 0.1 s', '0.2 s', '1 min 15 s', '2 h 5 min')
    """
    if seconds < 9.5:
        return "less than 0.1 s" if seconds < 0.095 else f"{seconds:.1g} s"
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    units = (hours, "h"), (minutes, "min"), (0 if hours else seconds, "s")
    return " ".join(f"{number} {unit}" for number, unit in units if number)
