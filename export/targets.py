"""Where an export can go other than into a file: a server's model repository, or a page."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from shlex import quote

from mdlstm_tk.errors import InputError


@dataclass(frozen=True)
class Place:
    """Somewhere that takes exported models.

    Attributes:
        take: given a model's file, its run's name, and its size if that is not the run's own, puts it
            there and returns where it now lies.
        then: the command to type next.
    """

    take: Callable[[Path, str, str | None], Path]
    then: str


def find_place(
    output: Path | None, server_repo: Path | None, web: Path | None, runtime: Path | None, force: bool
) -> Place | None:
    """The place that the options name, ready to take models; None for files.

    Raises:
        InputError: they name several, or the one is taken.
        MDLSTMError: the browser's runtime cannot be had.
    """
    if sum(option is not None for option in (output, server_repo, web)) > 1:
        raise InputError("-o, --server-repo and --web each say where to; give one of them")
    if runtime and not web:
        raise InputError("--web-runtime is for --web DIR; give both")
    if server_repo:
        return _server(server_repo, force)
    return _page(web, runtime, force) if web else None


def _server(repository: Path, force: bool) -> Place:
    from mdlstm_tk.export.server import write_server_repo

    def take(model: Path, run: str, other_size: str | None) -> Path:
        name = f"{run}-{other_size}" if other_size else run
        name = re.sub(r"[^\w.-]+", "-", name, flags=re.ASCII).strip("-.") or "model"
        return write_server_repo(model, repository, name, force=force)

    return Place(take, f"tritonserver --model-repository={quote(str(repository.resolve()))}")


def _page(folder: Path, source: Path | None, force: bool) -> Place:
    from mdlstm_tk.export.browser.build import check_page, load_runtime, write_page

    check_page(folder, force)
    runtime = load_runtime(source)

    def take(model: Path, run: str, _: str | None) -> Path:
        return write_page(model, folder, run, runtime)

    return Place(take, f"python -m http.server -d {quote(str(folder))}  # and open http://localhost:8000")
