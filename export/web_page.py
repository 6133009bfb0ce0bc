"""A web page as the destination of an export."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from mdlstm_tk._util.text import shell_quoted
from mdlstm_tk.errors import InputError
from mdlstm_tk.export.browser.build import check_page, load_runtime, write_page
from mdlstm_tk.export.browser.examples import page_examples
from mdlstm_tk.export.model_file import read_metadata
from mdlstm_tk.training import Run


@dataclass
class WebPage:
    """A web page that runs one model in the browser; see `write_page`.

    Attributes:
        folder: for the page.
        web_runtime: a file or folder with onnxruntime-web; npm fetches it if None.
        force: write into a folder that is not empty.
        data: the path of the user's data, if the run was trained on such; see `page_examples`.
        on_message: called with one line if the page has no examples.
        next_command: the shell command that serves the page.
    """

    folder: Path
    web_runtime: Path | None = None
    force: bool = False
    data: str = ""
    on_message: Callable[[str], None] = field(default=lambda message: None, repr=False)

    def __post_init__(self) -> None:
        server = f"python -m http.server --bind 127.0.0.1 -d {shell_quoted(self.folder)}"
        self.next_command = f"{server}  # and open http://localhost:8000"

    def prepare(self, count: int) -> None:
        """Check the folder and load onnxruntime-web, as `check_page` and `load_runtime` do, before `count`
        models are exported; raise an InputError if the page cannot hold them."""
        if count > 1:
            raise InputError(f"a page holds one model, got {count} sizes; give one size, or none for any")
        check_page(self.folder, self.force)
        self._runtime_files = load_runtime(self.web_runtime)

    def add(self, model: Path, run: Run) -> Path:
        """Write the page for an exported file of a run, and return the path of the file in it."""
        metadata = read_metadata(model.read_bytes(), model.name)
        examples = page_examples(run, metadata, self.data, self.on_message)
        return write_page(model, self.folder, run.folder.resolve().name, self._runtime_files, examples)
