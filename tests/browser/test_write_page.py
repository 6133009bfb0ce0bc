"""`export --web`: where onnxruntime-web comes from, and what is written; no browser is needed."""

from __future__ import annotations

import base64
import io
import json
import tarfile
from pathlib import Path

import numpy as np
import onnx
import pytest
from helpers.command import succeed
from helpers.exported_page import GRID, craft

from mdlstm_tk.cli.export import export
from mdlstm_tk.errors import InputError, MDLSTMError
from mdlstm_tk.export.browser import build as web
from mdlstm_tk.export.browser.build import load_runtime, write_page
from mdlstm_tk.training import Run

EMPTY = dict.fromkeys(web.RUNTIME, b"")  # in place of onnxruntime-web


def test_the_runtime_comes_from_a_folder_or_a_package(
    onnxruntime_web: dict[str, bytes], package: Path, tmp_path: Path
) -> None:
    assert load_runtime(package) == onnxruntime_web
    with tarfile.open(tmp_path / "p.tgz", "w:gz", compresslevel=1) as file:
        file.add(package / "dist", "package/dist")
    assert load_runtime(tmp_path / "p.tgz") == onnxruntime_web
    name = next(iter(onnxruntime_web))
    (package / "dist" / name).write_bytes(onnxruntime_web[name] + b" ")
    with pytest.raises(InputError, match=name):
        load_runtime(package)


def packed(path: Path, kind: bytes = tarfile.REGTYPE, size: int = 0) -> Path:
    """A package with members of a kind; links lead to themselves, by which tarfile recursed endlessly."""
    with tarfile.open(path, "w:gz", compresslevel=1) as package:
        for name in ("other", *web.RUNTIME):
            member = tarfile.TarInfo(f"package/dist/{name}")
            member.type, member.size, member.linkname = kind, size, member.name
            package.addfile(member, io.BytesIO(bytes(size)))
    return path


def test_what_is_no_runtime(tmp_path: Path) -> None:
    path = tmp_path / "p.tgz"

    def check_refused(source: Path, reason: str = "") -> None:
        with pytest.raises(InputError, match=rf"onnxruntime-web@.*{reason}.*npm pack") as caught:
            load_runtime(source)
        assert "\n" not in str(caught.value)

    check_refused(tmp_path)
    check_refused(tmp_path / "none.tgz")
    for kind in (tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.DIRTYPE, tarfile.FIFOTYPE):
        check_refused(packed(path, kind), "lacks the file")
    whole = packed(path, size=9000).read_bytes()
    for cut in range(0, len(whole), 9):
        for damaged in (whole[:cut], whole[:cut] + b"\xff" + whole[cut + 1 :]):
            path.write_bytes(damaged)
            check_refused(path)


def test_without_npm_or_network(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(MDLSTMError, match=r"npm.*not installed.*npm pack onnxruntime-web@"):
        load_runtime()
    npm = tmp_path / "npm"
    npm.write_text("#!/bin/sh\necho 'npm error code ENOTFOUND' >&2\nexit 1\n")
    npm.chmod(0o755)
    with pytest.raises(MDLSTMError, match=r"onnxruntime-web@.*npm error code ENOTFOUND"):
        load_runtime()


def test_the_verb_writes_a_page(trained: Run, package: Path, tmp_path: Path) -> None:
    options = ("--web", "page", "--web-runtime", package)
    result = succeed("export", trained.folder, *options, cwd=tmp_path)
    assert "-d page" in result.err.splitlines()[-1]
    assert "page/model.onnx" in result.err
    info = json.loads((tmp_path / "page/model.json").read_text())
    assert info["name"] == "md-8x8" and info["isDiagonal"]
    examples = json.loads((tmp_path / "page/examples.json").read_text())
    assert len(examples) == 6
    first = np.frombuffer(base64.b64decode(examples[0]["data"]), "<f4").reshape(8, 8)
    assert (first == 1).sum() == 2, "an example of the diagonal task has two ones"
    with pytest.raises(InputError, match=r"page is not empty.*force=True"):
        export(trained.folder, web=tmp_path / "page")
    with pytest.raises(InputError, match="2 sizes"):
        export(trained.folder, size=[(4, 4), (5, 5)], web=tmp_path / "other")


def test_a_page_is_whole_and_leaves_the_rest_alone(tmp_path: Path) -> None:
    folder = tmp_path / "page"
    folder.mkdir()
    (folder / "mine.txt").write_text("stays")
    (folder / "index.html").write_text("goes")
    model = craft(tmp_path / "m.onnx", GRID)
    assert write_page(model, folder, "m", EMPTY) == folder / "model.onnx"
    assert (folder / "mine.txt").read_text() == "stays"
    assert (folder / "model.onnx").read_bytes() == model.read_bytes()
    static = Path(web.__file__).parent / "static"
    assets = {path.relative_to(static) for path in static.rglob("*") if path.is_file()}
    written = {path.relative_to(folder) for path in folder.rglob("*") if path.is_file()}
    others = ["mine.txt", "model.onnx", "model.json", "examples.json", *(f"ort/{name}" for name in EMPTY)]
    assert written == assets | set(map(Path, others))
    for path in assets:
        assert (folder / path).read_bytes() == (static / path).read_bytes()
    with pytest.raises(InputError, match=r"index\.html"):
        write_page(model, folder / "index.html", "m", EMPTY)


def test_data_called_diagonal_are_not_explained_as_the_task(tmp_path: Path) -> None:
    for fields, is_task in (({}, True), ({"user_data": True}, False), ({"task": "digits"}, False)):
        model = craft(tmp_path / "m.onnx", GRID, **{"task": "diagonal", **fields})
        write_page(model, tmp_path / "page", "m", EMPTY)
        assert json.loads((tmp_path / "page/model.json").read_text())["isDiagonal"] is is_task


def test_models_that_no_page_takes(tmp_path: Path) -> None:
    path = tmp_path / "m.onnx"
    for grid, fields, named in (
        (GRID, {"inputs": ("x", "mood")}, "mood"),
        (GRID, {"output_names": ("y", "attention"), "further_windows": (None,)}, "y, attention"),
        (GRID, {"integer": True}, "whole numbers"),
        ((2, 5, 8), {"layout": "N D H W C", "window": (1, 1, 1)}, "N D H W C"),
    ):
        craft(path, grid, **fields)
        with pytest.raises(InputError, match=rf"m\.onnx.*{named}"):
            write_page(path, tmp_path / "page", "m", EMPTY)
    model = onnx.load(path)
    del model.metadata_props[:]
    onnx.save(model, path)
    with pytest.raises(InputError, match=r"m\.onnx.*mdlstm-tk"):
        write_page(path, tmp_path / "page", "m", EMPTY)
    assert not (tmp_path / "page").exists()


def test_a_folder_that_cannot_exist_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(MDLSTMError, match="File name too long"):
        web.check_page(tmp_path / ("n" * 300), force=False)
