"""A static web page that runs an exported model in the browser, without server code or external requests.

DIR/index.html, style.css, *.js, icon.svg   copies of the files in `export/browser/static`
DIR/model.onnx, model.json                  the model, and what the page has to know about it
DIR/examples.json                           inputs to try, from the validation data
DIR/ort/                                    onnxruntime-web
"""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import tarfile
import tempfile
import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from importlib.resources import as_file, files
from pathlib import Path
from unicodedata import bidirectional

from mdlstm_tk._util.folders import is_empty, staging
from mdlstm_tk._util.text import printable, reason_of, shell_quoted, to_json
from mdlstm_tk.errors import InputError, MDLSTMError
from mdlstm_tk.export.browser.examples import PageExample, page_examples
from mdlstm_tk.export.report import ExportReport
from mdlstm_tk.io.metadata import Metadata
from mdlstm_tk.kinds import kind_named
from mdlstm_tk.runtime.model_check import check_model
from mdlstm_tk.runtime.shapes import HALF_MAX
from mdlstm_tk.training import Run

# The page is tested with exactly this version of onnxruntime-web. The SHA-256 of its files is checked
# wherever they come from, so a package that was tampered with is refused. To move to another version,
# change the version and both hashes, and run tests/browser.
PACKAGE = "onnxruntime-web@1.30.0"
RUNTIME = {
    "ort.wasm.bundle.min.mjs": "11e64bd8ffe11bd1a2a2f0d6275fdfbbba7262f0b76b99b53d228a8a22ef3d90",
    "ort-wasm-simd-threaded.wasm": "3398c10d07d229bd91b364548e130e0e51a8e5704b88c7c083ebbeb78842dee2",
}
MANUAL_DOWNLOAD = f"or run `npm pack {PACKAGE}` on another machine and pass the file with --web-runtime"


def load_runtime(source: Path | None = None) -> dict[str, bytes]:
    """The files of onnxruntime-web that a page needs, by name.

    Args:
        source: the package as saved by `npm pack`, or its folder in `node_modules`. None runs npm, which
            caches the package, so that only the first call needs the network.

    Raises:
        InputError: `source` does not hold the required version.
        MDLSTMError: npm is not installed, or it cannot fetch the package.
    """
    if source is None:
        with staging(Path(tempfile.gettempdir())) as folder:
            return _read_runtime(_npm_pack(folder))
    return _read_runtime(source)


def check_page(folder: Path, force: bool) -> None:
    """Check that a page may be written into `folder`.

    Raises:
        InputError: it is a file, or it is not empty and `force` is false.
        MDLSTMError: it cannot be read.
    """
    if os.path.isfile(folder):
        raise InputError(f"{folder} is a file, expected a folder for the page")
    if not force and not is_empty(folder):
        raise InputError(
            f"{folder} is not empty; give another folder, or write into it with force=True (--force)"
        )


def write_page(
    model: Path,
    folder: Path,
    name: str,
    runtime: Mapping[str, bytes],
    examples: Sequence[PageExample] = (),
) -> Path:
    """Write the page for an exported model.

    Each file appears completely or not at all. Other files in the folder are left unchanged.

    Args:
        model: an `.onnx` file that `export_onnx` wrote for two-dimensional grids. Extents that are free can
            be chosen on the page.
        folder: the folder for the page; it is created if it does not exist.
        name: title of the page.
        runtime: the files that `load_runtime` returned.
        examples: inputs that the page offers to try; without any, it offers random numbers.

    Returns:
        The page's `model.onnx`.

    Raises:
        InputError: the page cannot run such a model, or `folder` is a file.
        MDLSTMError: the folder cannot be written.
    """
    data = model.read_bytes()
    info = _model_info(data, printable(name), model.name)
    contents = {f"ort/{file}": content for file, content in runtime.items()}
    contents["model.onnx"] = data
    contents["model.json"] = f"{to_json(info, indent=2)}\n".encode()
    contents["examples.json"] = f"{to_json([example.to_json() for example in examples])}\n".encode()
    with staging(folder) as stage, as_file(files("mdlstm_tk.export.browser")) as browser:
        page = stage / "page"
        shutil.copytree(browser / "static", page, copy_function=shutil.copyfile)
        for file, content in contents.items():
            (page / file).write_bytes(content)
        (folder / "ort").mkdir(exist_ok=True)
        for path in page.rglob("*.*"):
            os.replace(path, folder / path.relative_to(page))
    return folder / "model.onnx"


@dataclass(frozen=True)
class WebPage:
    """A web page as the destination of the export of a run; see `write_page`.

    Attributes:
        folder: for the page.
        web_runtime: a file or folder with onnxruntime-web; npm fetches it if None.
        data: the path of the user's data, if the run was trained on such; see `page_examples`.
        on_message: called with one line if the page has no examples.
    """

    folder: Path
    web_runtime: Path | None = None
    data: str = ""
    on_message: Callable[[str], None] = lambda message: None

    @property
    def next_command(self) -> str:
        """The shell command that serves the page."""
        server = f"python -m http.server --bind 127.0.0.1 -d {shell_quoted(self.folder)}"
        return f"{server}  # and open http://localhost:8000"

    def prepare(self, count: int, force: bool) -> dict[str, bytes]:
        """What `load_runtime` returns, before `count` models are exported; `force`: into a folder that may
        hold something.

        Raises:
            InputError: the page cannot hold them, or as for `check_page` and `load_runtime`.
            MDLSTMError: as for these.
        """
        if count > 1:
            raise InputError(f"a page holds one model, got {count} sizes; give one size, or none for any")
        check_page(self.folder, force)
        return load_runtime(self.web_runtime)

    def write(self, report: ExportReport, run: Run, runtime: Mapping[str, bytes]) -> ExportReport:
        """Write the page for a model of a run; returns the report of the model in it."""
        examples = page_examples(run, report.metadata, self.data, self.on_message)
        name = run.folder.resolve().name
        return replace(report, path=write_page(report.path, self.folder, name, runtime, examples))


def _model_info(data: bytes, title: str, label: str) -> dict[str, object]:
    """The content of `model.json`; `label` names the model in error messages."""
    properties = check_model(data, label, trusted=True)
    metadata = Metadata.from_props(properties, label)
    info = {"name": title, "channels": metadata.channels, "bytes": len(data), "version": metadata.version}
    if metadata.ndim != 2 or not set(metadata.inputs) <= {"x", "sizes"}:
        raise InputError(
            f"{label} takes {', '.join(metadata.inputs)} with x in layout {metadata.layout}; a page "
            "supports two-dimensional grids without further inputs"
        )
    if len(metadata.output_names) > 1:
        raise InputError(
            f"{label} has the outputs {', '.join(metadata.output_names)}; a page shows one, so export "
            "a module that returns only that one"
        )
    if metadata.integer:
        raise InputError(f"{label} takes whole numbers alone; a page gives it any")
    direction = metadata.more.get("text_direction")  # which a kind may have
    return {
        **info,
        "grid": metadata.grid,
        "multipleOf": metadata.multiple_of,
        "minGrid": metadata.min_grid,
        "channelsLast": metadata.channels_last,
        "output": metadata.output_names[0],
        "outputs": metadata.outputs,
        "window": metadata.window,
        "kind": metadata.kind,
        "classes": metadata.classes,
        # As texts, since JavaScript rounds numbers of more than 53 bits.
        "maskValues": metadata.mask_values and [str(value) for value in metadata.mask_values],
        "maskPalette": metadata.mask_palette,
        "textDirection": direction,
        "threshold": metadata.more.get("threshold"),
        "range": kind_named(metadata.kind).x_range,
        "trainedRange": metadata.x_range,
        "largest": HALF_MAX if metadata.dtype == "float16" else None,
        "bidirectional": [bidirectional(name[0]) for name in metadata.classes or ()] if direction else None,
        "preprocessing": metadata.preprocessing,
        "unitRange": metadata.unit_range,
        "isDiagonal": metadata.task == "diagonal" and not metadata.user_data,
        "sizes": "sizes" in metadata.inputs,
    }


def _npm_pack(folder: Path) -> Path:
    """Fetch the package into `folder`."""
    npm = shutil.which("npm")
    if npm is None:
        raise MDLSTMError(
            f"npm, which fetches {PACKAGE} for the page, is not installed; install Node.js "
            f"(https://nodejs.org), {MANUAL_DOWNLOAD}"
        )
    options = ["--prefer-offline", "--loglevel=error", "--pack-destination", str(folder)]
    command = [npm, "pack", PACKAGE, *options]
    result = subprocess.run(command, capture_output=True, text=True, errors="replace", check=False)
    packages = list(folder.glob("*.tgz"))
    if result.returncode or not packages:
        lines = [line for line in result.stderr.splitlines() if line.strip()]
        raise MDLSTMError(
            f"npm cannot fetch {PACKAGE}: {lines[0] if lines else 'no output'}; "
            f"check the network and `npm ping`, {MANUAL_DOWNLOAD}"
        )
    return packages[0]


def _read_runtime(source: Path) -> dict[str, bytes]:
    """Read the files from a package, whose links are not followed, or its folder; check their SHA-256."""
    contents: dict[str, bytes] = {}
    try:
        if source.is_dir():
            contents = {name: (source / "dist" / name).read_bytes() for name in RUNTIME}
        else:
            members = {f"package/dist/{name}": name for name in RUNTIME}
            with tarfile.open(source, mode="r|gz") as package:
                for member in package:
                    name = members.get(member.name)
                    file = package.extractfile(member) if name and member.isreg() else None
                    if name and file and not member.issparse():
                        contents[name] = file.read()
        if missing := RUNTIME.keys() - contents.keys():
            raise ValueError(f"it lacks the file {min(missing)}")
    except (OSError, ValueError, EOFError, tarfile.TarError, zlib.error) as error:
        raise InputError(
            f"{source} is not {PACKAGE}: {reason_of(error)}; make it with: npm pack {PACKAGE}"
        ) from None
    for name, expected in RUNTIME.items():
        if hashlib.sha256(contents[name]).hexdigest() != expected:
            raise InputError(
                f"{source} is not {PACKAGE}: its {name} differs; make it with: npm pack {PACKAGE}"
            )
    return contents
