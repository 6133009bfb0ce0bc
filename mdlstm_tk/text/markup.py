"""XML whose elements know their offsets in the file, so that a few can be changed and all other bytes stay.

The parser is Python's expat. A document type, which entities would be declared in, is refused.
"""

from __future__ import annotations

import codecs
import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from xml.parsers import expat

from mdlstm_tk.errors import InputError
from mdlstm_tk.io.files import read_bytes

MAX_INDENT = 1000  # bytes
ROOT_BYTES = 2**16  # at the start of a file, in which the root is searched
ENCODING = re.compile(rb"""<\?xml[^>]*?\sencoding\s*=\s*["']([\w.-]+)["']""")
TAG = re.compile(rb"""<[^>"']*(?:(?:"[^"]*"|'[^']*')[^>"']*)*>""")  # a value may hold ">"
ATTRIBUTE = re.compile(r"""(\s+)([^\s=/>]+)(\s*=\s*)("[^"]*"|'[^']*')""")
INVALID = re.compile("[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")  # in XML 1.0
ESCAPES = str.maketrans({"&": "&amp;", "<": "&lt;", ">": "&gt;", "\r": "&#13;"})
QUOTES = str.maketrans({'"': "&quot;", "\n": "&#10;", "\t": "&#9;"})


@dataclass(eq=False)
class Element:
    """An element and its offsets in the bytes of a `Document`.

    Attributes:
        tag: name without namespace.
        prefix: what stands before the name, such as "alto:"; mostly empty.
        attributes: by their names as they are written.
        start, content, content_end, end: where the element begins, where its start tag ends, and where its
            end tag begins and ends. The last three are equal if it is an empty tag.
    """

    tag: str
    prefix: str
    attributes: dict[str, str]
    start: int
    content: int = 0
    content_end: int = 0
    end: int = 0
    children: list[Element] = field(default_factory=list)
    text: str = ""

    def all(self, tag: str) -> list[Element]:
        """The children with a name."""
        return [child for child in self.children if child.tag == tag]

    def first(self, *tags: str) -> Element | None:
        """The first child of the first name, its first child of the second, …; None if there is none."""
        element: Element | None = self
        for tag in tags:
            element = next(iter(element.all(tag)), None) if element else None
        return element

    def descendants(self, tag: str) -> Iterator[Element]:
        """The elements with a name inside this one, in their order."""
        stack = self.children[::-1]
        while stack:
            element = stack.pop()
            if element.tag == tag:
                yield element
            stack += element.children[::-1]


class Document:
    """The content of an XML file, and changes of it.

    Args:
        path: the file, or its name in error messages.
        data: its bytes; None: they are read.

    Attributes:
        root: the outermost element.

    Raises:
        InputError: the file cannot be read, is not well-formed, in an unknown encoding, or has a
            document type.
    """

    root: Element

    def __init__(self, path: Path, data: bytes | None) -> None:
        data = read_bytes(path) if data is None else data
        match = ENCODING.match(data.removeprefix(codecs.BOM_UTF8))
        self._encoding = match.group(1).decode() if match else "utf-8"
        self._edits: list[tuple[int, int, str]] = []
        self._open: list[Element] = []
        try:
            self._data = data.decode(self._encoding).encode()  # offsets are those in UTF-8
            self._parse(path)
        except (LookupError, UnicodeError):
            raise InputError(f"{path} is not in the encoding {self._encoding}; save it as UTF-8") from None
        except expat.ExpatError as error:
            reason = f"{expat.ErrorString(error.code)} in line {error.lineno}"
            raise InputError(f"{path} is not well-formed XML: {reason}; export it again") from None

    def set_attributes(self, element: Element, values: Mapping[str, str | None]) -> None:
        """Change or add attributes; those with the value None are removed."""
        name_end = element.start + 1 + len(f"{element.prefix}{element.tag}".encode())
        text = self._data[name_end : element.content].decode()
        remaining, parts, end = dict(values), [], 0
        for match in ATTRIBUTE.finditer(text):
            blank, name, equals, _ = match.groups()
            end = match.end()
            if name not in remaining:
                parts.append(match[0])
            elif (value := remaining.pop(name)) is not None:
                parts.append(f"{blank}{name}{equals}{quoted(value)}")
        parts += [f" {name}={quoted(value)}" for name, value in remaining.items() if value is not None]
        self._edits.append((name_end, name_end + len(text[:end].encode()), "".join(parts)))

    def set_content(self, element: Element, markup: str) -> None:
        """Replace what is between the start tag and the end tag."""
        if element.content == element.end:  # an empty tag
            name = f"{element.prefix}{element.tag}"
            slash = self._data.rindex(b"/", element.start, element.end)
            self._edits.append((slash, element.end, f">{markup}</{name}>"))
        else:
            self._edits.append((element.content, element.content_end, markup))

    def insert(self, parent: Element, after: Element | None, markup: str) -> None:
        """Add an element after a child, or as the first one, indented like its neighbour."""
        if after is None and parent.content == parent.end:
            self.set_content(parent, markup)
            return
        neighbour = after or next(iter(parent.children), None)
        indent = self._blanks_before(neighbour.start) if neighbour else ""
        offset = after.end if after else parent.content
        self._edits.append((offset, offset, indent + markup))

    def remove(self, element: Element) -> None:
        """Remove an element and the blanks before it."""
        start = element.start - len(self._blanks_before(element.start))
        self._edits.append((start, element.end, ""))

    def render(self) -> bytes:
        """The file with the changes, in its encoding; without changes, the bytes that were read."""
        parts, offset = [], 0
        for start, end, text in sorted(self._edits, key=lambda edit: edit[:2]):
            parts += [self._data[offset:start], text.encode()]
            offset = end
        return b"".join([*parts, self._data[offset:]]).decode().encode(self._encoding, "xmlcharrefreplace")

    def _blanks_before(self, offset: int) -> str:
        before = self._data[max(0, offset - MAX_INDENT) : offset]
        return before[len(before.rstrip()) :].decode()

    def _parse(self, path: Path) -> None:
        parser = expat.ParserCreate("utf-8")
        parser.buffer_text = True

        def refuse(*_: object) -> None:
            raise InputError(f"{path} has a document type (DOCTYPE), which is not read; remove it")

        def start(name: str, attributes: dict[str, str]) -> None:
            prefix, colon, tag = name.rpartition(":")
            element = Element(tag, prefix + colon, attributes, parser.CurrentByteIndex)
            if self._open:
                self._open[-1].children.append(element)
            else:
                self.root = element
            self._open.append(element)

        def end(_: str) -> None:
            element = self._open.pop()
            match = TAG.match(self._data, element.start)
            assert match, "expat has read this tag"
            element.content = element.content_end = element.end = match.end()
            if not match[0].endswith(b"/>"):
                element.content_end = parser.CurrentByteIndex
                element.end = self._data.index(b">", element.content_end) + 1

        def characters(text: str) -> None:
            self._open[-1].text += text

        parser.StartDoctypeDeclHandler = refuse
        parser.StartElementHandler, parser.EndElementHandler = start, end
        parser.CharacterDataHandler = characters
        parser.Parse(self._data, True)


def root_tag(path: str | os.PathLike[str]) -> str | None:
    """The name of the outermost element of an XML file; None if it is not XML or cannot be read."""
    names: list[str] = []
    try:
        with open(path, "rb") as file:
            data = file.read(ROOT_BYTES)
        match = ENCODING.match(data.removeprefix(codecs.BOM_UTF8))
        if match:  # expat knows few encodings
            data = data.decode(match.group(1).decode(), "replace").encode()
        parser = expat.ParserCreate("utf-8" if match else None)
        parser.StartElementHandler = lambda name, _: names.append(name.rpartition(":")[2])
        parser.Parse(data, False)
    except (OSError, expat.ExpatError, LookupError, ValueError):
        pass
    return names[0] if names else None


def escaped(text: str) -> str:
    """A text as the content of an element."""
    return INVALID.sub("\ufffd", text).translate(ESCAPES)


def quoted(text: str) -> str:
    """A text as the value of an attribute, in quotation marks."""
    return f'"{escaped(text).translate(QUOTES)}"'
