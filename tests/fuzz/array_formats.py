"""Mutate files of arrays and images by their structure: headers, chunks, tags, markers, directories."""

from __future__ import annotations

import io
import random
import struct
import warnings
import zipfile
import zlib
from collections.abc import Callable

from fuzz.mutate import INTEGERS, TEXTS, mutate_bytes, mutate_text

SHAPES = (
    "()",
    "(0,)",
    "(4, 8)",
    "(-1, 8)",
    "(4.0, 8)",
    "(True, 2)",
    "4",
    "(10**9,)",
    "(99999, 99999)",
    "[4, 8]",
)
DTYPES = ("<f4", ">f8", "|O", "|S9", "<U9", "|V0", "<M8[s]", "<c16", "|b1", "<f16", "f", "x", "<f4,<f4", "")
PNG_CHUNKS = (
    b"IHDR",
    b"IDAT",
    b"IEND",
    b"PLTE",
    b"tRNS",
    b"zTXt",
    b"iTXt",
    b"tEXt",
    b"iCCP",
    b"acTL",
    b"fcTL",
    b"eXIf",
)
LARGE = 100_000  # bytes, from which on a file is not multiplied once more


def mutate_npy(rng: random.Random, data: bytes) -> bytes:
    """Change the header's text, version or length."""
    width = 2 if data[6:7] == b"\x01" else 4
    size = int.from_bytes(data[8 : 8 + width], "little")
    header = data[8 + width : 8 + width + size].decode("latin1")
    rest = data[8 + width + size :]
    action = rng.randrange(6)
    if action == 0:
        header = mutate_text(rng, header)
    elif action == 1:
        start, end = header.index("("), header.index(")") + 1
        header = (
            header[:start]
            + rng.choice((*SHAPES, f"({rng.choice(INTEGERS)}, 8)", "(1," * 3000))
            + header[end:]
        )
    elif action == 2:
        start = header.index("'descr': '") + 10
        header = header[:start] + rng.choice(DTYPES) + header[header.index("'", start) :]
    elif action == 3:
        header = header.replace(
            *rng.choice((("False", "True"), ("True", "None"), ("shape", "x"), ("}", "'a': 1}")))
        )
    elif action == 4:
        header = header.rstrip() + " " * rng.choice((0, 1, 60_000)) + "\n"
    version = rng.choice((data[6:8], b"\x01\x00", b"\x02\x00", b"\x03\x00", b"\x09\x09"))
    width = 2 if version == b"\x01\x00" else 4
    encoded = header.encode("latin1", "replace")
    size = rng.choice(INTEGERS) if action == 5 else len(encoded)
    return data[:6] + version + (size % 256**width).to_bytes(width, "little") + encoded + rest


def mutate_npz(rng: random.Random, data: bytes) -> bytes:
    """Change members and their names, or fields of the directory and of the local headers."""
    action = rng.randrange(5)
    if action < 2:
        return _rebuilt(rng, data)
    changed = bytearray(data)
    signature = rng.choice((b"PK\x01\x02", b"PK\x03\x04", b"PK\x05\x06"))
    places = [k for k in range(len(data) - 4) if data[k : k + 4] == signature]
    if not places:
        return mutate_bytes(rng, data)
    at = rng.choice(places) + rng.randrange(4, 46)
    width = rng.choice((1, 2, 4))
    changed[at : at + width] = (rng.choice(INTEGERS) % 256**width).to_bytes(width, "little")
    return bytes(changed) + (bytes(30_000) if action == 4 else b"")


def _rebuilt(rng: random.Random, data: bytes) -> bytes:
    file = io.BytesIO()
    with (
        zipfile.ZipFile(io.BytesIO(data)) as old,
        zipfile.ZipFile(file, "w") as new,
        warnings.catch_warnings(),
    ):
        warnings.simplefilter("ignore")  # of names that occur twice
        for member in old.namelist():
            content = old.read(member)
            for _ in range(rng.choice((0, 1, 1, 1, 2))):
                if rng.random() < 0.4:
                    content = mutate_npy(rng, content) if content[:1] == b"\x93" else content
                name = mutate_text(rng, member) if rng.random() < 0.5 else member
                kind = rng.choice(
                    (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA)
                )
                new.writestr(zipfile.ZipInfo(name.encode("utf-8", "replace").decode()), content, kind)
    return file.getvalue()


def mutate_csv(rng: random.Random, data: bytes) -> bytes:
    """Change a cell, the separators or the encoding."""
    text = data.decode("utf-8-sig")
    action = rng.randrange(5)
    if action == 0:
        cells = text.split(",")
        cells[rng.randrange(len(cells))] = rng.choice(
            (*TEXTS, "1" * 100_000, "1e5000", "0x10", "1_000", "nan", "1j")
        )
        text = ",".join(cells)
    elif action == 1:
        text = text.replace(
            *rng.choice(((",", ";"), (",", "\t"), ("\n", "\r"), (".", ","), ("\n", "\0"), ("1", "\u0661")))
        )
    elif action == 2:
        text = text * (rng.choice((2, 1000)) if len(data) < LARGE else 2)
    elif action == 3:
        return text.encode(rng.choice(("utf-16", "utf-32", "utf-8-sig", "cp037")))
    else:
        text = mutate_text(rng, text)
    return text.encode("utf-8", "surrogatepass")


def mutate_png(rng: random.Random, data: bytes) -> bytes:
    """Change, add, remove or move chunks, with valid checksums; the pixels are compressed anew."""
    chunks = []
    at = 8
    while at + 8 <= len(data):
        size = int.from_bytes(data[at : at + 4], "big")
        chunks.append([data[at + 4 : at + 8], data[at + 8 : at + 8 + size]])
        at += 12 + size
    chunk = rng.choice(chunks)
    action = rng.randrange(9)
    if action == 0:
        chunks.remove(chunk)
    elif action == 1:
        chunks.insert(rng.randrange(len(chunks)), list(chunk))
    elif action == 2:
        chunk[0] = rng.choice((*PNG_CHUNKS, b"\0\0\0\0", b"\x1b[2J"))
    elif action == 3:
        header = bytearray(chunks[0][1])
        at = rng.choice((0, 4))
        header[at : at + 4] = (rng.choice(INTEGERS) % 2**32).to_bytes(4, "big")
        chunks[0][1] = bytes(header)
    elif action == 4 and len(chunks[0][1]) == 13:
        chunks[0][1] = chunks[0][1][:8] + bytes(rng.randrange(18) for _ in range(5))
    elif action == 5:
        bomb = zlib.compress(bytes(rng.choice((10, 10**6, 3 * 10**7))), 1)
        kind, start = rng.choice(
            ((b"zTXt", b"k\0\0"), (b"iTXt", b"k\0\1\0\0\0"), (b"iCCP", b"k\0\0"), (b"IDAT", b""))
        )
        chunks.insert(rng.choice((1, len(chunks))), [kind, start + bomb])
    elif action == 6:
        chunks[1:1] = [[b"acTL", struct.pack(">II", rng.choice((0, 1, 2**31)) % 2**32, 0)]]
    else:
        chunk[1] = mutate_bytes(rng, chunk[1])
    parts = [data[:8]]
    for kind, content in chunks:
        parts += [
            struct.pack(">I", len(content)),
            kind,
            content,
            struct.pack(">I", zlib.crc32(kind + content)),
        ]
    return b"".join(parts)


def mutate_tiff(rng: random.Random, data: bytes) -> bytes:
    """Change tag, type, count or value of an entry; let a directory refer to itself."""
    order = "<" if data[:2] == b"II" else ">"
    (start,) = struct.unpack_from(f"{order}I", data, 4)
    if start + 2 > len(data):
        return mutate_bytes(rng, data)
    (count,) = struct.unpack_from(f"{order}H", data, start)
    changed = bytearray(data)
    for _ in range(rng.choice((1, 1, 2, 3))):
        entry = start + 2 + 12 * rng.randrange(max(count, 1))
        if entry + 12 > len(changed):
            break
        field, width = rng.choice(((0, 2), (2, 2), (4, 4), (8, 4), (8, 2)))
        value = (
            rng.choice((*INTEGERS, *range(254, 290), 1, 2, 3, 5, 7, 8, 34665, 330, 34925, 50000))
            % 256**width
        )
        changed[entry + field : entry + field + width] = value.to_bytes(
            width, "little" if order == "<" else "big"
        )
    if rng.random() < 0.1:
        struct.pack_into(f"{order}H", changed, start, rng.choice((0, 1, count + 1, 65535)))
    end = start + 2 + 12 * count
    if rng.random() < 0.1 and end + 4 <= len(changed):
        struct.pack_into(f"{order}I", changed, end, rng.choice((start, 1, 8, 2**32 - 1)))
    return bytes(changed)


def mutate_jpeg(rng: random.Random, data: bytes) -> bytes:
    """Change, repeat, remove or move segments; repeat the scans of a progressive picture."""
    segments = []
    at = 2
    while at + 4 <= len(data) and data[at] == 0xFF:
        size = int.from_bytes(data[at + 2 : at + 4], "big")
        end = at + 2 + size
        if data[at + 1] == 0xDA:  # a scan, up to the next marker
            while end + 1 < len(data) and not (
                data[end] == 0xFF and data[end + 1] not in (0, *range(0xD0, 0xD8))
            ):
                end += 1
        segments.append(data[at:end])
        at = end
    k = rng.randrange(len(segments))
    action = rng.randrange(7)
    if action == 0:
        del segments[k]
    elif action == 1:
        segments.insert(rng.randrange(len(segments)), segments[k])
    elif action == 2:
        scans = [segment for segment in segments if segment[1] == 0xDA]
        segments += scans * (rng.choice((1, 40, 3000)) if len(data) < LARGE else 1)
    elif action == 3:
        frames = [
            n for n, segment in enumerate(segments) if 0xC0 <= segment[1] <= 0xCF and segment[1] != 0xC4
        ]
        if frames:
            frame = bytearray(segments[frames[0]])
            frame[1] = rng.choice((frame[1], 0xC0, 0xC1, 0xC2, 0xC3, 0xC9))
            at = rng.choice((4, 5, 7, 9))
            frame[at : at + 2] = (rng.choice(INTEGERS) % 65536).to_bytes(2, "big")
            segments[frames[0]] = bytes(frame)
    elif action == 4:
        content = rng.choice(
            (b"Exif\0\0", b"ICC_PROFILE\0\1\1", b"Photoshop 3.0\0", b"MPF\0")
        ) + rng.randbytes(40)
        segments.insert(
            0,
            b"\xff"
            + bytes([rng.choice((0xE1, 0xE2, 0xED))])
            + struct.pack(">H", len(content) + 2)
            + content,
        )
    else:
        segments[k] = segments[k][:2] + mutate_bytes(rng, segments[k][2:])
    return data[:2] + b"".join(segments) + data[at:]


def mutate_header(rng: random.Random, data: bytes) -> bytes:
    """Set a number near the start, as text or in bytes: for BMP, GIF, WebP and PNM."""
    if data[:1] == b"P" and data[1:2].isdigit():
        words = data[:40].split()
        words[rng.randrange(min(4, len(words)))] = rng.choice(
            (*map(str, INTEGERS), "P6", "P7", "#", "1e3", "")
        ).encode()
        return b"\n".join(words) + b"\n" + data[40:]
    changed = bytearray(data)
    width = rng.choice((1, 2, 4))
    at = rng.randrange(2, min(60, len(changed)))
    changed[at : at + width] = (rng.choice(INTEGERS) % 256**width).to_bytes(width, "little")
    return bytes(changed)


BY_SUFFIX: dict[str, Callable[[random.Random, bytes], bytes]] = {
    ".npy": mutate_npy,
    ".npz": mutate_npz,
    ".csv": mutate_csv,
    ".png": mutate_png,
    ".tiff": mutate_tiff,
    ".jpg": mutate_jpeg,
}


def mutate_file(rng: random.Random, data: bytes, suffix: str) -> bytes:
    """Change a file by its structure; the result may be invalid in any way."""
    try:
        return BY_SUFFIX.get(suffix, mutate_header)(rng, data)
    except Exception:  # it is damaged already
        return mutate_bytes(rng, data)
