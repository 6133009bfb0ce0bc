"""Arrays and images to mutate: every type that `mdlstm infer` reads, in every mode and layout."""

from __future__ import annotations

import io
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

MODES = {
    ".png": ("1", "L", "LA", "P", "RGB", "RGBA", "I;16", "PA"),
    ".jpg": ("L", "RGB", "CMYK"),
    ".tiff": ("1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "YCbCr", "LAB", "I;16", "I", "F"),
    ".bmp": ("1", "L", "P", "RGB", "RGBA"),
    ".gif": ("1", "L", "P", "RGB", "RGBA"),
    ".webp": ("RGB", "RGBA", "L"),
    ".pgm": ("1", "L", "I;16"),
    ".ppm": ("RGB",),
}
OPTIONS: dict[str, tuple[dict[str, Any], ...]] = {
    ".jpg": ({}, {"progressive": True}, {"icc_profile": b"profile", "comment": b"text"}),
    ".png": ({}, {"interlace": 1}, {"transparency": 0}),
    ".tiff": tuple({"compression": name} for name in (None, "tiff_lzw", "tiff_adobe_deflate", "packbits")),
    ".webp": ({}, {"lossless": True}),
    ".gif": ({}, {"save_all": True, "loop": 0}),
}


def write_array_seeds(folder: Path) -> None:
    """Write the files to mutate."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, data in _arrays():
        (folder / name).write_bytes(data)
    for name, data in _images():
        (folder / name).write_bytes(data)


def _arrays() -> Iterator[tuple[str, bytes]]:
    rng = np.random.default_rng(0)
    x = (10 * rng.random((4, 8))).astype(np.float32)
    for dtype in ("<f4", ">f8", "<f2", "|u1", "<i8", "|b1", "<u2"):
        for order in "CF":
            yield f"npy-{dtype[1:]}-{order}.npy", _saved(np.save, np.asarray(x, dtype, order=order))
    yield "npy-batch.npy", _saved(np.save, x.reshape(2, 4, 4, 1))
    header = {"descr": "<f4", "fortran_order": False, "shape": x.shape}
    file = io.BytesIO()
    np.lib.format.write_array_header_2_0(file, header)
    yield "npy-version-2.npy", file.getvalue() + x.tobytes()
    yield "npz-stored.npz", _saved(np.savez, a=x, b=x[:2], c=x > 5)
    yield "npz-deflated.npz", _saved(np.savez_compressed, a=x, **{"name with spaces": x})
    yield (
        "npz-training.npz",
        _saved(np.savez, x=x.reshape(2, 4, 4), y=np.arange(2), sizes=np.array([[2, 3], [4, 4]])),
    )
    yield (
        "npz-bool.npz",
        _saved(np.savez_compressed, **{f"b{k}": np.zeros((50, 60), bool) for k in range(8)}),
    )
    yield "csv.csv", "\n".join(",".join(map(str, row)) for row in x.tolist()).encode()
    yield "csv-quoted.csv", b'\xef\xbb\xbf1,2.5, 3e2\r\n"4",-5,+6\r\n'


def _saved(save: Any, *arrays: Any, **named: Any) -> bytes:
    file = io.BytesIO()
    save(file, *arrays, **named)
    return file.getvalue()


def _images() -> Iterator[tuple[str, bytes]]:
    from PIL import Image

    Image.init()  # fills Image.EXTENSION
    rng = np.random.default_rng(0)
    base = Image.fromarray(rng.integers(0, 255, (4, 8, 3)).astype(np.uint8))
    exif = Image.Exif()
    exif[0x0112] = 6  # turned by 90 degrees
    exif[0x010E] = "description"
    for suffix, modes in MODES.items():
        for mode in modes:
            image = (
                base.convert("L").convert(mode)
                if mode in ("I;16", "I", "F", "LA", "PA")
                else base.convert(mode)
            )
            for number, options in enumerate(OPTIONS.get(suffix, ({},))):
                file = io.BytesIO()
                more = {"exif": exif} if suffix in (".jpg", ".png", ".webp") and number == 0 else {}
                if options.get("save_all"):
                    more["append_images"] = [image, image]
                try:
                    image.save(
                        file,
                        "PPM" if suffix in (".pgm", ".ppm") else Image.EXTENSION[suffix],
                        **options,
                        **more,
                    )
                except (OSError, ValueError, TypeError, RuntimeError):  # this mode has no such form
                    continue
                yield f"{suffix[1:]}-{mode.replace(';', '')}-{number}{suffix}", file.getvalue()
    for name, mode in (("jpeg", "RGB"), ("group4", "1")):
        file = io.BytesIO()
        base.convert(mode).save(file, "TIFF", compression=name)
        yield f"tiff-{name}.tiff", file.getvalue()
    yield "pnm-text.pgm", b"P2 # text\n3 2 255\n1 2 3 4 5 6\n"
    yield "pnm-bits.pgm", b"P1\n3 2\n1 0 1 0 1 0\n"
    yield "pnm-colours.ppm", b"P3\n1 2\n65535\n1 2 3 4 5 6\n"
