"""The findings of the security audit of version 0.1, one test for each, by the numbers of that audit."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tarfile
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fuzz.outcome import unclean
from helpers.checkout import ROOT
from helpers.crafted_models import FLOAT, INT64, crafted, info, node
from helpers.foreign_models import stored
from helpers.hostile_models import REFUSED, SLOW
from helpers.strangers import (
    BIDI,
    ESCAPES,
    FORGED,
    call,
    change_checkpoints,
    change_header,
    fake_programs,
    many_bools,
    npz_with_names,
    postscript,
    save,
)

from mdlstm_tk.errors import InputError, MDLSTMError
from mdlstm_tk.export.browser.build import RUNTIME
from mdlstm_tk.runtime import Session
from mdlstm_tk.runtime.io.readers import read_input
from mdlstm_tk.runtime.security.model_check import check_model

X = np.arange(4, dtype=np.float32).reshape(2, 2)
MAX_BYTES = 10**7


RUN, MODEL = Path("runs/diagonal"), Path("runs/diagonal/model-any.onnx")
VERBS: dict[str, tuple[object, ...]] = {
    "info": ("info", RUN),
    "report": ("report", RUN, "-o", "out.html"),
    "export": ("export", RUN, "-o", "out.onnx"),
    "verify": ("verify", RUN),
    "verify model": ("verify", MODEL),
    "resume": ("train", "--resume", RUN, "--steps", "6"),
    "config": ("train", "-c", RUN / "config.toml", "--steps", "2", "-o", "new"),
}


@pytest.mark.parametrize("verb", VERBS)
@pytest.mark.parametrize("setting", ["model", "cell"])
def test_1_a_run_folder_executes_nothing(verb: str, setting: str, place: Path) -> None:
    change_checkpoints(RUN, **{setting: "evil.py:md"})
    called = call(*VERBS[verb])
    assert "evil.py" in called.err and f"--{setting}" in called.err


@pytest.mark.parametrize("case", REFUSED)
def test_2_3_4_7_8_10_models_are_refused_before_they_are_loaded(case: str) -> None:
    model = REFUSED[case]()
    data = model if isinstance(model, bytes) else model.SerializeToString()
    # Without ONNX Runtime, which would take gigabytes for the former.
    load = partial(check_model, label="m.onnx") if case[0] in "2348" else partial(Session, device="cpu")
    with pytest.raises(InputError) as refused:
        load(data, max_bytes=10**8)
    assert not unclean(str(refused.value))


@pytest.mark.parametrize("case", SLOW)
def test_5_limits_bind_inside_operators(case: str) -> None:
    """Such a model is refused, or its process ends; either way the caller goes on."""
    data = SLOW[case]().SerializeToString()
    with (
        pytest.raises(MDLSTMError) as ended,
        Session(data, "cpu", isolated=True, timeout=0.5, max_bytes=MAX_BYTES) as session,
    ):
        session(X)
    assert not unclean(str(ended.value))


def test_6_a_report_shows_no_pictures_from_outside_the_data(place: Path) -> None:
    options = ("report", "runs/transcribe", "--data", "data/transcribe", "--force", "-o", "out.html")
    call(*options, code=0)
    assert "data:image" in Path("out.html").read_text()
    data = Path("data/transcribe")
    shutil.copy(data / "0.png", "private/secret.png")
    (data / "linked.png").symlink_to("../../private/secret.png")
    outside = ("../../private/secret.png", f"{place}/private/secret.png", "linked.png")
    (data / "labels.tsv").write_text("".join(f"{name}\tab\n" for name in outside * 3))
    call(*options, code=(0, 2))
    assert "data:image" not in Path("out.html").read_text()


def test_6_a_report_opens_data_only_if_they_are_named(place: Path) -> None:
    change_checkpoints(Path("runs/transcribe"), data="private", data_from_run="../../private")
    shutil.copytree("data/transcribe", "private", dirs_exist_ok=True)
    Path("private/labels.tsv").write_text("secret.png\tCANARY\n" * 9)
    page = Path("out.html")
    called = call("report", "runs/transcribe", "-o", page, code=(0, 2))
    assert "CANARY" not in called.out + called.err + (page.read_text() if page.exists() else "")


def test_6_images_start_no_programs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    marker = fake_programs(tmp_path, "gs", "gswin64c", "djpeg", "xv", "display")
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}{os.pathsep}{os.environ['PATH']}")
    for suffix in (".png", ".tiff", ".ppm", ".gif"):
        path = tmp_path / f"x{suffix}"
        path.write_bytes(postscript(tmp_path / "written"))
        with pytest.raises(InputError):
            read_input(str(path), MAX_BYTES)
    assert not marker.exists() and not (tmp_path / "written").exists()


def test_7_names_of_files_and_arrays_forge_nothing(place: Path) -> None:
    folder = Path("in")
    folder.mkdir()
    for name in (f"{FORGED.replace('/', '')}.npy", f"{ESCAPES}.npy", "[red]x[.npy", f"{BIDI}.npy"):
        np.save(folder / name, np.eye(4, dtype=np.float32))
    (folder / "names.npz").write_bytes(npz_with_names("a\nb", ESCAPES, "c"))
    options = ("-m", RUN, "--device", "cpu")
    call("infer", folder, *options, "-o", "out", code=(0, 1))
    called = call("infer", folder, *options, "-o", "out", "--force", "--json", code=(0, 1))
    sources = [record["source"] for record in json.loads(called.out)["files"]]
    assert len(sources) == len(set(sources)) == 5


def test_9_kernels_are_not_kept_in_the_current_folder(tmp_path: Path) -> None:
    """Without a home, a folder called "~" below the current one would be it."""
    code = """if True:
        import os, pwd

        def fail(uid):
            raise KeyError(uid)

        pwd.getpwuid = fail
        from mdlstm_tk.backends.cpu.compile import _compile
        from kernels import nothing
        _compile(nothing, "", "a kernel").ctypes(1)
    """
    (tmp_path / "code").mkdir()
    (tmp_path / "code/kernels.py").write_text("def nothing(x):\n    return\n")
    (tmp_path / "code").chmod(0o555)  # Numba would keep them beside the source
    here = tmp_path / "here"
    here.mkdir()
    names = ("HOME", "XDG_CACHE_HOME", "XDG_STATE_HOME", "NUMBA_CACHE_DIR")
    environment = {name: value for name, value in os.environ.items() if name not in names}
    environment |= {"PYTHONPATH": f"{ROOT}{os.pathsep}{tmp_path / 'code'}", "XDG_CACHE_HOME": "relative"}
    subprocess.run([sys.executable, "-c", code], cwd=here, env=environment, check=True)
    assert not list(here.iterdir())


def test_10_bool_arrays_count_as_what_they_become(tmp_path: Path) -> None:
    path = tmp_path / "x.npz"
    path.write_bytes(many_bools(12, 500))
    with pytest.raises(InputError, match=str(MAX_BYTES)):
        read_input(str(path), MAX_BYTES)
    assert len(read_input(str(path), 2 * MAX_BYTES).arrays) == 12


@pytest.mark.parametrize(
    "settings",
    [{"layers": 10**6}, {"hidden": 30_000}, {"layers": 2**40}, {"windows": ",".join(["1"] * 100_000)}],
    ids=str,
)
def test_10_checkpoints_do_not_make_networks_that_they_do_not_hold(
    settings: dict[str, Any], place: Path
) -> None:
    change_checkpoints(RUN, **settings)
    called = call("info", RUN)
    assert str(RUN) in called.err or next(iter(settings)) in called.err


METRICS = [
    "[]",
    "1",
    "null",
    '{"step": "x", "loss": []}',
    "{}",
    "[" * 100_000,
    "1" * 10_000,
    '{"loss": NaN}',
]


@pytest.mark.parametrize("line", METRICS, ids=lambda line: line[:20])
def test_10_hostile_metrics_and_results_are_one_line_or_ignored(line: str, place: Path) -> None:
    metrics = RUN / "metrics.jsonl"
    metrics.write_text(f"{line}\n{metrics.read_text()}{line}\n")
    (RUN / "result.json").write_text(line)
    (RUN / "times.json").write_text(line)
    call("info", RUN, code=(0, 2))
    call("report", RUN, "-o", "out.html", code=(0, 2))


def test_10_a_spec_with_too_few_classes_is_refused(place: Path) -> None:
    for path in Path("runs/transcribe").glob("*.safetensors"):
        data = path.read_bytes()
        size = int.from_bytes(data[:8], "little")
        spec = json.loads(json.loads(data[8 : 8 + size])["__metadata__"]["mdlstm"])["spec"]
        change_header(path, spec=spec | {"classes": ["\ud800", ESCAPES]})
    assert "classes" in call("info", "runs/transcribe").err


def test_10_outputs_of_unusual_shapes_end_in_one_line(place: Path) -> None:
    starts = [stored(name, INT64, [1], [0]) for name in ("starts", "ends")]
    axes = stored("axes", INT64, [1], [1])
    empty = crafted([node("Slice", "x starts ends axes", "y")], [*starts, axes])
    target = stored("shape", INT64, [1], [-1])
    odd = {"kind": '"transcribe"', "classes": '["a"]', "outputs": "2", "window": "null"}
    flat = crafted([node("Reshape", "x shape", "y")], [target], **odd)
    np.save("x.npy", X)
    for name, model, shape, code in (("empty", empty, (None, None, 2, 1), 1), ("flat", flat, (None,), 2)):
        model.graph.output[0].CopyFrom(info("y", FLOAT, shape))
        called = call(
            "infer", "x.npy", "-m", save(model, Path(f"{name}.onnx")), "--device", "cpu", code=code
        )
        assert "'y'" in called.err and len(called.err.splitlines()) <= 2


def test_10_markup_in_the_name_of_a_model_is_text(place: Path) -> None:
    Path("d[").mkdir()
    shutil.copy(MODEL, "d[/y].onnx")
    np.save("x.npy", np.eye(4, dtype=np.float32))
    assert "d[/y].onnx" in call("info", "d[/y].onnx", code=0).out
    call("infer", "x.npy", "-m", "d[/y].onnx", "-o", "y.npy", "--device", "cpu", code=0)
    assert "d[/y].onnx" in call("verify", "d[/y].onnx", "--against", RUN, "--device", "cpu", code=0).out


def test_10_an_archive_member_that_links_to_itself_is_refused(place: Path) -> None:
    with tarfile.open("web.tgz", mode="w:gz") as archive:
        for name in RUNTIME:
            member = tarfile.TarInfo(f"package/dist/{name}")
            member.type, member.linkname = tarfile.SYMTYPE, member.name.rpartition("/")[2]
            archive.addfile(member)
    called = call("export", RUN, "--web", "page", "--web-runtime", "web.tgz", "--form", "scan")
    assert "web.tgz" in called.err
    assert not list(Path("page").rglob("*.onnx"))


def test_10_the_page_is_served_to_this_machine_alone() -> None:
    texts = [
        path.read_text(encoding="utf-8") for path in (*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md"))
    ]
    lines = [line for text in texts for line in text.splitlines() if "http.server" in line]
    assert lines
    assert all("--bind 127.0.0.1" in line for line in lines)
