"""A static web page that runs an exported model in the browser, without server code or outside requests.

>>> report = export_run("runs/digits", "model.onnx", form="scan")
>>> examples = page_examples("runs/digits", report.metadata)
>>> write_page(report.path, "page", load_runtime(), title="digits", examples=examples)

index.html, style.css, *.js, icon.svg   copies of the files in `export/browser/static`
model.onnx, model.json                  the model, and what the page has to know about it
examples.json                           inputs to try, see `page_examples`
ort/                                    onnxruntime-web
"""

from __future__ import annotations

import colorsys
import hashlib
import io
import os
import shutil
import subprocess
import tarfile
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any
from unicodedata import bidirectional

from mdlstm_tk._util.folders import is_empty, staging
from mdlstm_tk._util.text import printable, reason_of, to_json
from mdlstm_tk.errors import InputError, MDLSTMError
from mdlstm_tk.io.metadata import Metadata
from mdlstm_tk.kinds import kind_named
from mdlstm_tk.runtime.session import read_metadata
from mdlstm_tk.runtime.shapes import HALF_MAX, trained_range

STATIC = Path(__file__).parent / "static"

# The page is tested with exactly this package. To move to another version, change both lines and run
# tests/browser.
PACKAGE = "onnxruntime-web@1.30.0"
PACKAGE_SHA256 = "d2228df7e4616bc3348bf504ee888f3bec43789a273f0a63f3e68d203ce3bf71"
RUNTIME_FILES = ("ort.wasm.bundle.min.mjs", "ort-wasm-simd-threaded.wasm")


def load_runtime(package: Path | None = None) -> dict[str, bytes]:
    """The files of onnxruntime-web that a page needs, by name.

    Args:
        package: the file that `npm pack` saved. None runs npm, which keeps what it has fetched once.

    Raises:
        InputError: `package` is another file.
        MDLSTMError: npm is not installed, or cannot fetch the package.
    """
    data = _fetch() if package is None else package.read_bytes()
    if hashlib.sha256(data).hexdigest() != PACKAGE_SHA256:  # so that no other archive is ever opened
        raise InputError(
            f"{package or 'what npm fetched'} is not {PACKAGE}; make it with: npm pack {PACKAGE}"
        )
    with tarfile.open(fileobj=io.BytesIO(data)) as archive:
        members = {name: archive.extractfile(f"package/dist/{name}") for name in RUNTIME_FILES}
        return {name: member.read() for name, member in members.items() if member}


def _fetch() -> bytes:
    """The bytes of the package, from npm."""
    with tempfile.TemporaryDirectory() as folder:
        options = ["--prefer-offline", "--loglevel=error", "--pack-destination", folder]
        try:
            command = [shutil.which("npm") or "npm", "pack", PACKAGE, *options]
            subprocess.run(command, capture_output=True, text=True, errors="replace", check=True)
            return next(Path(folder).glob("*.tgz")).read_bytes()
        except (OSError, subprocess.CalledProcessError, StopIteration) as error:
            reason = reason_of(ValueError(getattr(error, "stderr", "")) or error)
            advice = f"run `npm pack {PACKAGE}` on another machine and pass the file with --web-runtime"
            raise MDLSTMError(f"npm cannot fetch {PACKAGE}: {reason}; {advice}") from None


def check_page(folder: Path, force: bool) -> None:
    """Refuse a folder that holds something, unless `force` is true."""
    if not force and not is_empty(folder):
        raise InputError(
            f"{folder} is not empty; give another folder, or write into it with force=True (--force)"
        )


def write_page(
    model: str | Path,
    folder: str | Path,
    runtime: Mapping[str, bytes],
    *,
    title: str,
    examples: Sequence[Mapping[str, Any]] = (),
    force: bool = False,
) -> Path:
    """Write the page of an exported model. Each file appears whole or not at all.

    Args:
        model: an exported `.onnx` file for two-dimensional grids, some of whose extents may be free.
        folder: for the page; it is made if it does not exist.
        runtime: what `load_runtime` returned.
        title: of the page.
        examples: what `page_examples` returned; without any, the page offers random numbers.
        force: write into a folder that holds something, such as an older page. Other files in it stay.

    Returns:
        The page's `model.onnx`.

    Raises:
        InputError: no page runs such a model, or `folder` is a file, or holds something.
        MDLSTMError: the folder cannot be written.
    """
    model, folder = Path(model), Path(folder)
    metadata = read_metadata(model)
    if reason := _refusal(metadata):
        raise InputError(f"no page runs {model.name}: {reason}")
    check_page(folder, force)
    contents = {f"ort/{name}": content for name, content in runtime.items()}
    contents["model.onnx"] = model.read_bytes()
    contents["model.json"] = to_json({"title": printable(title), **_description(metadata)}).encode()
    contents["examples.json"] = to_json(examples).encode()
    with staging(folder) as stage:
        page = Path(shutil.copytree(STATIC, stage / "page", copy_function=shutil.copyfile))
        for name, content in contents.items():
            (page / name).write_bytes(content)
        (folder / "ort").mkdir(exist_ok=True)
        for path in page.rglob("*.*"):
            os.replace(path, folder / path.relative_to(page))
    return folder / "model.onnx"


def _refusal(m: Metadata) -> str:
    """Why no page can run a model; "" if one can."""
    texts = m.classes or () if kind_named(m.kind).reads_lines else ()
    if m.ndim != 2 or m.form == "tiles":
        return f"it takes {m.layout} in form '{m.form}', and a page two axes in one graph"
    if not {*m.inputs} <= {"x", "sizes"}:
        return f"it takes {', '.join(m.inputs)}, and a page gives x alone"
    if len(m.output_names) > 1:
        names = ", ".join(m.output_names)
        return f"it has the outputs {names}, and a page shows one; export a module that returns only that"
    if m.integer:
        return "it takes whole numbers alone, and a page gives any"
    if any(bidirectional(character) in ("R", "AL", "AN") for text in texts for character in text):
        return "its texts run from right to left, which a page does not show"
    return ""


def _description(m: Metadata) -> dict[str, Any]:
    """The content of `model.json`: what the page has to know about a model."""
    multiples = m.multiple_of or (1, 1)
    return {
        "version": m.version,
        "channels": m.channels,
        "channelsLast": m.channels_last,
        "grid": m.extents,
        "least": [max(pair) for pair in zip(m.min_grid or (1, 1), multiples, strict=True)],
        "multiples": multiples,
        "sizes": m.takes_sizes,
        "output": m.output_names[0],
        "outputs": m.outputs,
        "window": m.window,
        "columnsPerStep": m.columns_per_step,
        "kind": m.kind,
        "classes": m.classes,
        "threshold": m.more.get("threshold", 0.5),
        # As texts, since JavaScript rounds numbers of more than 53 bits.
        "maskValues": [str(value) for value in m.mask_values or range(m.outputs)],
        "palette": _palette(m),
        "preprocessing": m.preprocessing,
        "unitRange": m.unit_range,
        "isColour": bool(m.preprocessing) and m.channels == 3,
        "isGrey": m.channels == 1 and (bool(m.preprocessing) or m.kind not in (None, "grid")),
        "range": trained_range(m),
        "largest": HALF_MAX if m.dtype == "float16" else None,
        "isDiagonal": m.task == "diagonal" and not m.user_data,
    }


def _palette(m: Metadata) -> list[list[int]]:
    """Red, green and blue of each class of a segmenter: of the palette of its masks, or else dark for the
    first one and, for the others, hues in steps of the golden angle, by which neighbours differ."""
    if m.mask_palette:
        return [list(m.mask_palette[start : start + 3]) for start in range(0, len(m.mask_palette), 3)]
    hues = [(137.5 * k + 60) % 360 / 360 for k in range(1, m.outputs)]
    rest = [[round(255 * level) for level in colorsys.hls_to_rgb(hue, 0.6, 0.6)] for hue in hues]
    return [[40, 44, 52], *rest]
