"""Destinations of an export other than a file: a repository of Triton Inference Server, or a web page."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar

from mdlstm_tk._util.text import shell_quoted
from mdlstm_tk.errors import InputError
from mdlstm_tk.export.browser.build import check_page, load_runtime, write_page
from mdlstm_tk.export.browser.examples import page_examples
from mdlstm_tk.export.lowering.lower import Form
from mdlstm_tk.export.model_file import read_metadata
from mdlstm_tk.export.server import write_server_repo
from mdlstm_tk.training import Run


class ExportTarget:
    """A destination that takes exported models.

    Attributes:
        preferred_form: the form to export in unless another one is asked for.
        next_command: the shell command that makes use of the models.
    """

    preferred_form: ClassVar[Form] = "unrolled"
    next_command: str

    def prepare(self, count: int) -> None:
        """Check that `count` models can be added, before they are exported; raise an InputError if not."""

    def add(self, model: Path, run: Run, size: str | None) -> Path:
        """Add an exported file of a run, and return the path where the target keeps it.

        `size` is its grid as text, if that is not the run's own grid.
        """
        raise NotImplementedError


@dataclass
class ServerRepository(ExportTarget):
    """A model repository for NVIDIA Triton Inference Server; see `write_server_repo`.

    Attributes:
        folder: the repository.
        force: replace settings that are for other inputs and outputs.
    """

    folder: Path
    force: bool = False

    def __post_init__(self) -> None:
        self.next_command = f"tritonserver --model-repository={shell_quoted(self.folder.resolve())}"

    def add(self, model: Path, run: Run, size: str | None) -> Path:
        name = run.folder.resolve().name + (f"-{size}" if size else "")
        name = re.sub(r"[^\w.-]+", "-", name, flags=re.ASCII).strip("-.") or "model"
        return write_server_repo(model, self.folder, name, force=self.force)


@dataclass
class WebPage(ExportTarget):
    """A web page that runs one model in the browser; see `write_page`.

    Attributes:
        folder: for the page.
        web_runtime: a file or folder with onnxruntime-web; npm fetches it if None.
        force: write into a folder that is not empty.
        data: the path of the user's data, if the run was trained on such; see `page_examples`.
        on_message: called with one line if the page has no examples.
    """

    preferred_form: ClassVar[Form] = "scan"

    folder: Path
    web_runtime: Path | None = None
    force: bool = False
    data: str = ""
    on_message: Callable[[str], None] = field(default=lambda message: None, repr=False)

    def __post_init__(self) -> None:
        server = f"python -m http.server --bind 127.0.0.1 -d {shell_quoted(self.folder)}"
        self.next_command = f"{server}  # and open http://localhost:8000"

    def prepare(self, count: int) -> None:
        """Check the folder and load onnxruntime-web, as `check_page` and `load_runtime` do."""
        if count > 1:
            raise InputError(f"a page holds one model, got {count} sizes; give one size, or none for any")
        check_page(self.folder, self.force)
        self._runtime_files = load_runtime(self.web_runtime)

    def add(self, model: Path, run: Run, size: str | None) -> Path:
        metadata = read_metadata(model.read_bytes(), model.name)
        draws = metadata.drawing is not None  # such a page needs none
        examples = [] if draws else page_examples(run, metadata, self.data, self.on_message)
        return write_page(model, self.folder, run.folder.resolve().name, self._runtime_files, examples)
