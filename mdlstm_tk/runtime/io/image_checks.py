"""Refuse image files whose decoding takes far longer than their size tells, before Pillow sees them.

The number of pixels is limited elsewhere, which bounds memory. These files take time instead:

JPEG   each scan passes over all pixels, and a scan may take ten bytes; real files have up to 14
PPM    Pillow's time for comments in text files grows with the square of their number
TIFF   a strip may be empty, and the data of many tags may overlap, so that they are read many times
EXIF   is a TIFF directory, too
"""

from __future__ import annotations

import re
import struct
from collections.abc import Iterator
from typing import NamedTuple

from mdlstm_tk.errors import InputError

MAX_SCANS = 100  # of a JPEG
MAX_STRIPS = 2**17  # strips or tiles of a TIFF
MAX_COMMENTS = 1000  # of a PPM or PGM that is text
MAX_PPM_HEADER = 2**16  # bytes, with comments

TIFF_STARTS = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
STRIP_TAGS = (273, 279, 324, 325)  # offsets and byte counts, of strips and of tiles
TYPE_BYTES = {1: 1, 2: 1, 3: 2, 4: 4, 5: 8, 6: 1, 7: 1, 8: 2, 9: 4, 10: 8, 11: 4, 12: 8, 13: 4}
TYPE_BYTES |= dict.fromkeys((16, 17, 18), 8)  # of BigTIFF

# A marker of a JPEG; FF 00 and FF D0 … D7 are data.
_MARKER = re.compile(rb"\xff+([^\x00\xff\xd0-\xd7])")
_START_OF_SCAN, _END_OF_IMAGE = 0xDA, 0xD9


class Entry(NamedTuple):
    """An entry of a TIFF directory: its tag, the number of its values, and their bytes outside it."""

    tag: int
    values: int
    outside_bytes: int


def check_image(data: bytes, label: str) -> None:
    """Check an image file.

    Args:
        data: its content.
        label: what error messages call it.

    Raises:
        InputError: decoding it could take far longer than its size tells.
    """
    problem = ""
    if data.startswith(b"\xff\xd8"):
        # Each scan begins with these bytes, which may also lie in a profile or after the end of the image.
        scans = data.count(b"\xff\xda")
        scans = count_scans(data) if scans > MAX_SCANS else scans
        problem = f"{scans} scans, expected at most {MAX_SCANS}" if scans > MAX_SCANS else ""
    elif data.startswith(TIFF_STARTS):
        problem = directory_problem(data)
    elif re.match(rb"P[1-6]", data):
        problem = _ppm_problem(data)
    if problem:
        raise InputError(f"{label} is an image with {problem}; save it again with another program")


def count_scans(data: bytes) -> int:
    """The number of scans in a JPEG, in the order in which a decoder meets its markers."""
    scans, position = 0, 2
    while match := _MARKER.search(data, position):
        position, marker = match.end(), match[1][0]
        if marker == _END_OF_IMAGE:
            break
        scans += marker == _START_OF_SCAN
        if marker != 1:  # all others begin with the length of their segment
            position += int.from_bytes(data[position : position + 2], "big")
    return scans


def directory_problem(data: bytes) -> str:
    """What is wrong with the first directory of a TIFF file, or of EXIF data; "" if nothing is."""
    total = 0
    for entry in _directory(data):
        total += entry.outside_bytes
        if total > len(data):
            return "tags whose data overlap"
        if entry.tag in STRIP_TAGS and entry.values > MAX_STRIPS:
            return f"{entry.values} strips or tiles, expected at most {MAX_STRIPS}"
    return ""


def _directory(data: bytes) -> Iterator[Entry]:
    """The entries of the first directory, as far as they lie in the data."""
    order = "<" if data[:1] == b"I" else ">"
    is_big = data[2:4] in (b"+\0", b"\0+")
    entry_format, inline = (f"{order}HHQ8x", 8) if is_big else (f"{order}HHI4x", 4)
    try:
        (start,) = struct.unpack_from(f"{order}{'Q' if is_big else 'I'}", data, 8 if is_big else 4)
        (count,) = struct.unpack_from(f"{order}{'Q' if is_big else 'H'}", data, start)
        position = start + (8 if is_big else 2)
        for k in range(count):
            tag, kind, values = struct.unpack_from(entry_format, data, position + k * (12 + 2 * inline - 8))
            size = values * TYPE_BYTES.get(kind, 0)
            yield Entry(tag, values, size if size > inline else 0)
    except (struct.error, OverflowError):  # cut off, which Pillow reports
        return


def _ppm_problem(data: bytes) -> str:
    """What is wrong with a PBM, PGM or PPM; "" if nothing is."""
    header = re.sub(rb"#[^\r\n]*", b" ", data[:MAX_PPM_HEADER]).split(maxsplit=4)
    if len(header) < (3 if data[1:2] in b"14" else 4):
        return f"a header of more than {MAX_PPM_HEADER} bytes, or without extents"
    is_text = data[1:2] in b"123"
    if is_text and data.count(b"#") > MAX_COMMENTS:
        return f"more than {MAX_COMMENTS} comments"
    return ""
