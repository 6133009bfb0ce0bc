"""`mdlstm infer`: what it prints, and how errors of the library become options and exit codes."""

from __future__ import annotations

import io
import json
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers.command import Result, mdlstm, mdlstm_process, succeed
from helpers.small_models import CLASSES, classifier, recogniser, scores, segmenter, write_model
from helpers.tiled_models import single
from PIL import Image

from mdlstm_tk import MDLSTM
from mdlstm_tk.cli import console
from mdlstm_tk.export import export_onnx
from mdlstm_tk.runtime import inference
from mdlstm_tk.runtime.batching import Result as FileResult
from mdlstm_tk.runtime.tiles import files as tiled_files

RNG = np.random.default_rng(0)


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder, with a model that doubles x, one of each other kind, and inputs."""
    monkeypatch.chdir(tmp_path)
    write_model(tmp_path / "m.onnx")
    classifier(tmp_path / "classes.onnx")
    np.save("x.npy", RNG.random((8, 8), dtype=np.float32))
    Path("in").mkdir()
    for name, value, shape in (("a", 1, (8, 8)), ("b", 0, (5, 7)), ("c", -1, (8, 8)), ("d", 1, (5, 7))):
        np.save(f"in/{name}.npy", np.full(shape, value, np.float32))
    return tmp_path


def infer(*arguments: object, model: str | Path = "m.onnx", **options: Any) -> Result:
    return mdlstm("infer", *arguments, "-m", model, "--device", "cpu", **options)


LABELS = [f"in/{name}.npy\t{CLASSES[k]}" for name, k in (("a", 0), ("b", 1), ("c", 2), ("d", 0))]


@pytest.mark.usefixtures("place")
def test_one_array_an_image_and_standard_input() -> None:
    done = infer("x.npy")
    assert (done.code, done.out) == (0, "")
    assert "m.onnx on cpu (CPUExecutionProvider)\nx.npy (8, 8) → x.out.npy (8, 8)\n" in done.err
    np.testing.assert_array_equal(np.load("x.out.npy"), 2 * np.load("x.npy"))
    program = shlex.split(re.findall(r"^next: (.*)$", done.err, re.MULTILINE)[-1])[2]
    assert "numpy.load('x.out.npy')" in program
    Image.new("L", (4, 3), 51).save("i.png")
    assert infer("i.png", "-q").err == ""
    np.testing.assert_allclose(np.load("i.out.npy"), np.full((3, 4), 0.4), atol=1e-6)
    segmenter(Path("masks.onnx"))
    done = infer("i.png", model="masks.onnx")
    assert "i.png (3, 4) → i.out.png\n" in done.err  # and no shape, which is not that of the mask


def test_stdin_to_stdout(place: Path) -> None:
    command = [sys.executable, "-m", "mdlstm_tk", "infer", "-", "-m", "m.onnx"]
    data = Path("x.npy").read_bytes()
    done = subprocess.run(command, input=data, capture_output=True, check=True)
    np.testing.assert_array_equal(np.load(io.BytesIO(done.stdout)), 2 * np.load("x.npy"))
    done = subprocess.run([*command, "--format", "json"], input=data, capture_output=True, check=True)
    np.testing.assert_array_equal(np.float32(json.loads(done.stdout)), 2 * np.load("x.npy"))


@pytest.mark.usefixtures("place")
def test_labels_are_printed_in_the_order_of_the_files() -> None:
    done = infer("in", model="classes.onnx")
    assert done.out.splitlines() == LABELS  # although files of one shape run together
    assert "4 done, 0 skipped, 0 failed" in done.err
    assert infer("in/c.npy", model="classes.onnx").out == f"{CLASSES[2]}\n"
    done = infer("in", "-o", "t.tsv", model="classes.onnx")
    assert "wrote t.tsv" in done.err and not done.out
    assert Path("t.tsv").read_text(encoding="utf-8").splitlines() == LABELS
    assert "t.tsv exists" in infer("in", "-o", "t.tsv", model="classes.onnx").err
    for form in ("csv", "json"):
        printed = infer("in", "--top", 2, "--format", form, model="classes.onnx").out
        assert infer("in", "--top", 2, "-o", f"t.{form}", model="classes.onnx").code == 0
        assert Path(f"t.{form}").read_text(encoding="utf-8") == printed
    Path("in/b.npy").write_bytes(b"broken")
    done = infer("in", model="classes.onnx")
    assert done.code == 1 and done.out.splitlines() == [LABELS[0], *LABELS[2:]]
    assert re.search(r"^failed: in/b\.npy is not a complete \.npy", done.err, re.MULTILINE)
    assert done.err.splitlines()[-1] == "error: 1 of 4 files failed; see the lines above"


@pytest.mark.usefixtures("place")
def test_json_describes_each_file() -> None:
    np.save("in/c.npy", np.zeros(3))
    printed = json.loads(infer("in", "--json", model="classes.onnx").out)
    assert (printed["model"], printed["device"], printed["isolated"]) == ("classes.onnx", "cpu", False)
    assert (printed["done"], printed["failed"], printed["skipped"]) == (3, 1, 0)
    files = {record["source"]: record for record in printed["files"]}
    assert files["in/c.npy"]["error"].startswith("in/c.npy: x has shape (3,)")
    probability = np.exp(scores(1)) / np.exp(scores(1)).sum()
    answer = {"label": CLASSES[0], "probability": pytest.approx(probability.max(), abs=1e-6)}
    assert files["in/a.npy"] == {"source": "in/a.npy", "error": None, "target": None, "answers": [answer]}
    assert infer("in", "--json", "-o", "-").code == 2


@pytest.mark.usefixtures("place")
def test_skip_existing_continues() -> None:
    for name in "abd":
        Path(f"in/{name}.out.npy").write_bytes(b"kept")
    assert "in/a.out.npy exists; give another path, or replace it with --force" in infer("in").err
    done = infer("in", "--skip-existing")
    assert "1 done, 3 skipped, 0 failed" in done.err and ", such as in/" in done.err
    assert Path("in/b.out.npy").read_bytes() == b"kept"
    assert "nothing to do: all 4 results exist" in infer("in", "--skip-existing").err
    assert infer("in", "--force", "-q").err == ""
    assert Path("in/b.out.npy").read_bytes() != b"kept"


@pytest.mark.usefixtures("place")
def test_what_is_left_out_is_said() -> None:
    np.savez("in/train.npz", x=np.ones((2, 4, 4, 1)), y=np.ones(2))
    Path("in/notes.txt").touch()
    done = infer("in")
    assert "files that are no inputs of this model, left out: 1\n" in done.err
    assert "in/train.npz: y was left out, as it holds targets\n" in done.err


@pytest.mark.parametrize(("dtype", "is_warned"), [("u1", True), ("<u2", True), ("f4", True), ("?", False)])
@pytest.mark.parametrize("channels", [1, None])
def test_whole_numbers_are_not_taken_for_an_image(
    dtype: str, is_warned: bool, channels: int | None, tmp_path: Path
) -> None:
    metadata = {"preprocessing": {"channels": channels, "resize": None}} if channels else {}
    model, array = tmp_path / "m.onnx", tmp_path / "x.npy"
    export_onnx(MDLSTM(1, 2), model, grid=(4, 4), metadata=metadata)
    np.save(array, (np.arange(16).reshape(4, 4) * 10).astype(dtype))
    done = succeed("infer", array, "-m", model)
    assert ("warning: " in done.err and "divide by 255" in done.err) == (is_warned and channels == 1)


def test_ctrl_c_reports_how_to_resume(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(session: Any, jobs: list[Any], **options: Any) -> Iterator[FileResult]:
        yield FileResult(jobs[0])
        raise KeyboardInterrupt

    monkeypatch.setattr(inference, "infer_files", interrupted)
    done = infer("in")
    assert done.code == 130
    assert re.search(
        r"^stopped: 1 done, .* 3 to do; continue with --skip-existing$", done.err, re.MULTILINE
    )
    assert "skip-existing" not in infer("in", "--force").err  # it would find the old results
    done = infer("in", model="classes.onnx")  # the labels are printed, and found nowhere by a second call
    assert re.search(r"^stopped: 1 done, .* 3 to do$", done.err, re.MULTILINE)


def test_the_command_that_goes_on_with_tiled_files_does_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for name in "ab":
        np.save(f"{name}.npy", np.zeros((4, 4), np.float32))
    run = tiled_files._infer_file

    def interrupted(session: Any, file: Any, *arguments: Any) -> FileResult:
        if file.job.source == "b.npy":
            raise KeyboardInterrupt
        return run(session, file, *arguments)

    model = single().path
    with monkeypatch.context() as patch:
        patch.setattr(tiled_files, "_infer_file", interrupted)
        assert "the same command with --resume goes on" in infer("b.npy", "--resume", model=model).err
        done = infer("a.npy", "b.npy", "--resume", model=model)
        assert "the same command with --resume --skip-existing goes on" in done.err
    assert infer("a.npy", "b.npy", "--resume", "--skip-existing", model=model).code == 0


@pytest.mark.parametrize(
    ("arguments", "model", "message"),
    [
        (("x.npy", "-o", "in/y.mat"), "m.onnx", "with --format"),
        (("x.npy", "--top", 2), "m.onnx", "--top needs a model of kind classify .* m.onnx is of no kind"),
        (("x.npy", "--beam", 4), "m.onnx", "--beam needs a model of kind transcribe .* is of no kind"),
        (("x.npy", "--lm", "none.arpa"), "texts.onnx", "cannot read the language model none.arpa"),
        (("in", "-o", "-"), "m.onnx", "^error: -o - takes answers to several inputs"),
        (("x.npy", "--tile", 0), "m.onnx", "--tile 0 is out of range; give at least 1"),
        (("x.npy", "--workers", 2), "m.onnx", "--workers needs --engine ray; .* set --threads"),
        (("x.npy", "--tile", 8), "m.onnx", "--tile needs a tiled model.* as -m$"),
        (("x.npy", "--max-bytes", 300), "m.onnx", "m.onnx .*allow more with --max-bytes"),
    ],
)
def test_errors_name_options(arguments: tuple[Any, ...], model: str, message: str, place: Path) -> None:
    recogniser(place / "texts.onnx")
    before = sorted(place.rglob("*"))
    done = infer(*arguments, model=model)
    assert done.code == 2
    assert re.search(message, done.err.splitlines()[-1]), done.err
    assert sorted(place.rglob("*")) == before


def test_a_document_of_one_file_that_fails_is_not_begun(place: Path) -> None:
    np.save(place / "nan.npy", np.full((3, 3), np.nan))
    for file_format in ("json", "csv"):
        done = infer("nan.npy", "-o", "-", "--format", file_format, model="classes.onnx")
        assert (done.code, done.out) == (2, "") and "NaN" in done.err


@pytest.mark.usefixtures("place")
def test_names_that_look_like_arguments_stay_as_they_are() -> None:
    assert "there is no model top=3;" in infer("x.npy", model="top=3").err
    Path("in/level=3.npy").write_bytes(b"broken")
    Path("in/force=True.npy").write_bytes(b"broken")
    done = infer("in", "--json")
    assert "failed: in/level=3.npy is not a" in done.err and "failed: in/force=True.npy is not" in done.err


@pytest.mark.usefixtures("place")
def test_failures_of_single_files_name_options() -> None:
    np.save("in/big.npy", np.zeros((99, 99)))
    done = infer("in", "--json", "--max-bytes", 20000)
    (failed,) = [line for line in done.err.splitlines() if line.startswith("failed: ")]
    assert failed.startswith("failed: in/big.npy") and "allow more with --max-bytes, or run it in" in failed
    assert failed.endswith("mdlstm export RUN --form tiles")
    (record,) = [record for record in json.loads(done.out)["files"] if record["error"]]
    assert failed == f"failed: {record['error']}"
    done = infer("in/big.npy", "--json", "--max-bytes", 20000)
    printed = json.loads(done.out)
    assert (done.code, printed["done"], printed["failed"], printed["files"]) == (2, 0, 1, [record])


def test_max_bytes_may_exceed_the_limit_of_pillow(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)
    Image.new("L", (300, 200)).save("big.png")
    assert infer("big.png").code == 2
    assert infer("big.png", "--max-bytes", 10**9, "-o", "big.npy").code == 0


def on_a_terminal(*arguments: object) -> str:
    """The output of `mdlstm infer` on a terminal."""
    pty = pytest.importorskip("pty", reason="needs a POSIX terminal")
    leader, follower = pty.openpty()
    environment = {**os.environ, "TERM": "xterm-256color", "COLORTERM": "truecolor", "COLUMNS": "120"}
    command = [sys.executable, "-m", "mdlstm_tk", "infer", *map(str, arguments)]
    subprocess.run(command, stderr=follower, env=environment, check=True)
    os.close(follower)
    printed = os.read(leader, 1 << 16).decode(errors="replace")
    os.close(leader)
    return printed


@pytest.mark.usefixtures("place")
def test_a_terminal_shows_grids_for_one_file_and_a_bar_for_many() -> None:
    printed = on_a_terminal("x.npy", "-m", "m.onnx")
    assert "input" in printed and "prediction" in printed and "\x1b[48;2;" in printed
    printed = on_a_terminal("in", "-m", "m.onnx")
    assert "4/4" in printed and "files/s" in printed


@pytest.mark.usefixtures("place")
def test_a_log_gets_a_line_in_30_seconds(monkeypatch: pytest.MonkeyPatch) -> None:
    assert "1/4" not in infer("in").err
    monkeypatch.setattr(console, "LINE_SECONDS", 0)
    assert re.search(r"^1/4  .* files/s", infer("in", "--force").err, re.MULTILINE)


def test_a_full_disk_ends_the_run_and_leaves_no_half_file(place: Path) -> None:
    resource = pytest.importorskip("resource", reason="needs POSIX limits")
    np.save("in/c.npy", np.zeros((9, 8, 8, 1)))
    done = subprocess.run(
        [sys.executable, "-B", "-m", "mdlstm_tk", "infer", "in", "-o", "out", "-m", "m.onnx"],
        capture_output=True,
        text=True,
        check=False,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000)),
    )
    assert done.returncode == 1
    assert "cannot write out/c.out.npy" in done.stderr.splitlines()[-1]
    assert "0 failed" in done.stderr and "continue with --skip-existing" in done.stderr
    assert "c.out.npy" not in {path.name for path in Path("out").rglob("*")}
    assert not [path for path in Path("out").iterdir() if path.name.startswith(".")]


@pytest.mark.skipif(sys.platform != "linux", reason="other systems refuse such file names")
def test_the_console_escapes_names_and_programs_read_utf_8(place: Path) -> None:
    names = ["日本", os.fsdecode(b"caf\xe9"), "a\x1b[2J\nforged: line"]
    for name in names:
        np.save(f"in/{name}.npy", np.ones((4, 4)))
    Path("in/a\x1b[2J\nforged: line.npy").write_bytes(b"broken")
    for form in ("txt", "json"):
        done = mdlstm_process(
            *("infer", "in", "-m", "classes.onnx", "--format", form, "-v"),
            env={"PYTHONIOENCODING": "ascii", "PYTHONUTF8": "0"},
        )
        assert "日本" in done.out and "caf\\udce9" in done.out
        assert done.code == 1 and "failed: in/a\\x1b[2J\\nforged: line.npy is not" in done.err
        assert "\x1b" not in done.out + done.err
        if form == "json":
            assert len(json.loads(done.out)) == 6


@pytest.mark.skipif(sys.platform == "win32", reason="needs a POSIX shell")
def test_a_closed_standard_input_is_empty(place: Path) -> None:
    command = f"{shlex.quote(sys.executable)} -m mdlstm_tk infer - -m m.onnx <&-"
    done = subprocess.run(command, shell=True, cwd=place, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.splitlines()[-1] == "error: standard input is empty"
