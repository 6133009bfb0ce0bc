"""A static page that runs an exported model in the browser; no server code, and nothing from elsewhere.

DIR/index.html, style.css, *.js, icon.svg   from `export/page`
DIR/model.onnx, model.json                  the model, and what the page must know of it
DIR/ort/                                    onnxruntime-web, from npm or a copy of it
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import tarfile
import tempfile
from collections.abc import Mapping
from importlib.resources import as_file, files
from pathlib import Path

from mdlstm_tk.errors import InputError, MDLSTMError
from mdlstm_tk.export.tensor_spec import read_model
from mdlstm_tk.runtime import Metadata
from mdlstm_tk.runtime.io.files import staging

# One version, and its files by their SHA-256, wherever they come from: a page is made of what it was tested
# with, and a package that was tampered with, in the registry or on the way, goes into none. To move to a
# newer one, change all three and run tests/test_web.py.
PACKAGE = "onnxruntime-web@1.30.0"
RUNTIME = {
    "ort.wasm.bundle.min.mjs": "11e64bd8ffe11bd1a2a2f0d6275fdfbbba7262f0b76b99b53d228a8a22ef3d90",
    "ort-wasm-simd-threaded.wasm": "3398c10d07d229bd91b364548e130e0e51a8e5704b88c7c083ebbeb78842dee2",
}
ELSEWHERE = f"or fetch it where you can, with: npm pack {PACKAGE}, and name that file with --web-runtime"


def load_runtime(source: Path | None = None) -> dict[str, bytes]:
    """The files of onnxruntime-web that a page needs, by name.

    Args:
        source: the package as `npm pack` saves it, or its folder in `node_modules`; None asks npm, which
            keeps what it fetched and needs no network the next time.

    Raises:
        InputError: `source` does not hold the version that is needed.
        MDLSTMError: npm is not installed, or cannot fetch it.
    """
    if source is None:
        with tempfile.TemporaryDirectory() as folder:
            return _read_runtime(_npm_pack(Path(folder)))
    return _read_runtime(source)


def check_page(folder: Path, force: bool) -> None:
    """Make sure that a page may be written into `folder`.

    Raises:
        InputError: it is a file, or it holds something and `force` is false.
    """
    if folder.is_file():
        raise InputError(f"{folder} is a file, expected a folder for the page")
    if not force and folder.is_dir() and any(folder.iterdir()):
        raise InputError(f"{folder} is not empty; give another folder, or --force to write a page into it")


def write_page(model: Path, folder: Path, name: str, runtime: Mapping[str, bytes]) -> Path:
    """Write the page for an exported model. Each file appears whole; other files there are left alone.

    Args:
        model: an `.onnx` file that `export_onnx` wrote, for two-dimensional grids; one for any size lets
            the size be chosen on the page.
        folder: where to; made if need be.
        name: the page's title.
        runtime: what `load_runtime` gave.

    Returns:
        The page's `model.onnx`.

    Raises:
        InputError: the model is another one, or `folder` is a file.
        MDLSTMError: the folder cannot be written.
    """
    data = model.read_bytes()
    about = json.dumps(_about(data, name, model.name), indent=2)
    with staging(folder) as stage, as_file(files("mdlstm_tk.export.browser") / "static") as page:
        shutil.copytree(page, stage / "page", copy_function=shutil.copyfile)
        for file, content in runtime.items():
            (stage / "page" / "ort" / file).write_bytes(content)
        (stage / "page" / "model.onnx").write_bytes(data)
        (stage / "page" / "model.json").write_text(about + "\n", encoding="utf-8")
        (folder / "ort").mkdir(exist_ok=True)
        for path in (stage / "page").rglob("*.*"):
            os.replace(path, folder / path.relative_to(stage / "page"))
    return folder / "model.onnx"


def _about(data: bytes, name: str, shown: str) -> dict[str, object]:
    """What the page must know of the model."""
    metadata = Metadata.from_props({p.key: p.value for p in read_model(data).metadata_props}, shown)
    if metadata.ndim != 2 or not set(metadata.inputs) <= {"x", "sizes"}:
        raise InputError(
            f"{shown} takes {', '.join(metadata.inputs)}, x of layout {metadata.layout}; "
            "a page is for two-dimensional grids, without further inputs"
        )
    return {
        "name": name,
        "grid": metadata.grid,
        "channels": metadata.channels,
        "channelsLast": metadata.channels_last,
        "outputs": metadata.outputs,
        "window": metadata.window,
        "classes": metadata.classes,
        "task": metadata.task,
        "sizes": "sizes" in metadata.inputs,
        "bytes": len(data),
        "version": metadata.version,
    }


def _npm_pack(folder: Path) -> Path:
    """The package, fetched by npm into `folder`."""
    npm = shutil.which("npm")
    if npm is None:
        raise MDLSTMError(
            f"the page needs {PACKAGE} from npm, and npm is not installed; install Node.js "
            f"(https://nodejs.org), {ELSEWHERE}"
        )
    options = ["--prefer-offline", "--loglevel=error", "--pack-destination", str(folder)]
    done = subprocess.run([npm, "pack", PACKAGE, *options], capture_output=True, text=True, check=False)
    packed = list(folder.glob("*.tgz"))
    if done.returncode or not packed:
        lines = [line for line in done.stderr.splitlines() if line.strip()]
        raise MDLSTMError(
            f"npm cannot fetch {PACKAGE}: {lines[0] if lines else 'it wrote nothing'}; "
            f"check the network and `npm ping`, {ELSEWHERE}"
        )
    return packed[0]


def _read_runtime(source: Path) -> dict[str, bytes]:
    """The files, from a package or a folder of it, each of them the one that is expected."""
    try:
        if source.is_dir():
            found = {name: (source / "dist" / name).read_bytes() for name in RUNTIME}
        else:
            with tarfile.open(source, "r:gz") as package:
                found = {name: _member(package, f"package/dist/{name}") for name in RUNTIME}
    except (OSError, KeyError, EOFError, tarfile.TarError) as error:
        raise InputError(
            f"{source} is not {PACKAGE}: {' '.join(str(error).split()) or type(error).__name__}; "
            f"make it with: npm pack {PACKAGE}"
        ) from None
    for name, expected in RUNTIME.items():
        if hashlib.sha256(found[name]).hexdigest() != expected:
            raise InputError(
                f"{source} is not {PACKAGE}: its {name} is another one; make it with: npm pack {PACKAGE}"
            )
    return found


def _member(package: tarfile.TarFile, name: str) -> bytes:
    file = package.extractfile(name)
    if file is None:
        raise KeyError(f"{name} is not a file")
    with file:
        return file.read()
