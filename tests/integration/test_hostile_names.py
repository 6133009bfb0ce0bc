"""Names of files, classes and arrays that would forge output if they were printed as they are.

Every verb that prints or writes names is called with them. What people read holds no control character and
no line that a name has begun; what programs read gives back the exact names.
"""

from __future__ import annotations

import csv
import io
import json
import os
import re
import shlex
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
from helpers.command import mdlstm_process
from helpers.crafted_models import crafted
from helpers.hostile_names import CLASSES, EVIL, NAMES, TAG, Command, check_readable, write_classifier
from helpers.user_data import write_classes

from mdlstm_tk._util.text import is_plain_text, text_of_field
from mdlstm_tk.cli import main
from mdlstm_tk.cli.options import complete_files
from mdlstm_tk.errors import InputError
from mdlstm_tk.export.verification.cases import user_cases
from mdlstm_tk.runtime import Metadata
from mdlstm_tk.runtime.security.interface import TensorSpec
from mdlstm_tk.training import Run

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="other systems refuse such file names")


@pytest.fixture
def call(capfd: pytest.CaptureFixture[str]) -> Command:
    return Command(capfd)


@pytest.fixture(scope="module")
def classifier(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model of `CLASSES`."""
    return write_classifier(tmp_path_factory.mktemp("classifier") / "model.onnx")


@pytest.fixture
def files(tmp_path: Path) -> list[Path]:
    """An array in a file of each name; the largest value is at the index of its class."""
    folder = tmp_path / "in"
    (folder / "d[").mkdir(parents=True)
    paths = [folder / f"{name}.npy" for name in NAMES] + [folder / "d[" / "y].npy"]
    for k, path in enumerate(paths):
        x = np.zeros((4, 4), np.float32)
        x.flat[k % len(CLASSES)] = 1
        np.save(path, x)
    return paths


def labels(files: list[Path]) -> dict[str, str]:
    return {str(path): CLASSES[k % len(CLASSES)] for k, path in enumerate(files)}


def test_lines_give_back_the_names(files: list[Path], classifier: Path, call: Command) -> None:
    done = call("infer", files[0].parent, "-m", classifier)
    check_readable(done.out.replace("\t", ""))
    rows = [tuple(map(text_of_field, line.split("\t"))) for line in done.out.split("\n")[:-1]]
    assert dict(rows) == labels(files)
    assert len(rows) == len(files)


@pytest.mark.parametrize("option", [(), ("--top", 2), ("--probabilities",)], ids=str)
def test_tables_give_back_the_names(
    option: tuple[object, ...], files: list[Path], classifier: Path, tmp_path: Path, call: Command
) -> None:
    assert call("infer", files[0].parent, "-m", classifier, "-o", tmp_path / "t.csv", *option).code == 0
    text = (tmp_path / "t.csv").read_bytes().decode()
    check_readable(text)
    heading, *rows = csv.reader(io.StringIO(text, newline=""))
    assert len(set(heading)) == len(heading)
    assert {text_of_field(row[0]): row[3] for row in rows} == labels(files)


def test_json_gives_back_the_names(
    files: list[Path], classifier: Path, tmp_path: Path, call: Command
) -> None:
    folder = files[0].parent
    assert call("infer", folder, "-m", classifier, "-o", tmp_path / "t.json", "--probabilities").code == 0
    answers = json.loads((tmp_path / "t.json").read_text(encoding="utf-8"))
    assert {answer["file"]: answer["label"] for answer in answers} == labels(files)
    assert all(answer["probabilities"].keys() == set(CLASSES) for answer in answers)
    done = call("infer", folder, "-m", classifier, "--json", "-v")
    check_readable(done.out)
    records = json.loads(done.out)["files"]
    assert {record["source"]: record["answers"][0]["label"] for record in records} == labels(files)
    bytes_of = {os.fsencode(record["source"]) for record in records}
    assert bytes_of == {os.fsencode(path) for path in files}


def test_every_failure_is_one_line(files: list[Path], classifier: Path, call: Command) -> None:
    for path in files:
        path.write_bytes(b"\x93NUMPY\x01\x00")
    done = call("infer", files[0].parent, "-m", classifier)
    assert done.code == 1
    assert done.err.count("\nfailed: ") + done.err.startswith("failed: ") == len(files)
    for path in files:
        assert call("infer", path, "-m", classifier).err.count("\n") == 1


def test_a_traceback_holds_no_forged_line(
    classifier: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        main(["infer", str(tmp_path / EVIL), "-m", str(classifier), "--debug"])
    text = capfd.readouterr().err
    assert text.startswith("Traceback (most recent call last):\n")
    check_readable(text.replace("Traceback", ""))
    assert "\n  File " in text


def test_files_that_a_shell_would_misread_are_not_completed(
    files: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(files[0].parent)
    assert set(complete_files(".npy")("")) == {
        *(path.name for path in files if is_plain_text(path.name) and path.parent.name == "in"),
        "d[/",
    }


@pytest.mark.parametrize("name", [*NAMES, TAG])
def test_a_model_of_any_name_is_described(
    name: str, classifier: Path, tmp_path: Path, call: Command
) -> None:
    path = tmp_path / f"{name}.onnx"
    path.parent.mkdir(exist_ok=True)
    shutil.copyfile(classifier, path)
    done = call("info", path)
    assert done.code == 0
    check_readable(done.out)
    assert json.loads(call("info", path, "--json").out)["classes"] == list(CLASSES)
    assert call("info", f"{path}\n").code == 2


def test_the_next_command_can_be_pasted(model: Path, tmp_path: Path, call: Command) -> None:
    matrix = tmp_path / f"{EVIL}.npy"
    np.save(matrix, np.zeros((8, 8)))
    done = call("infer", matrix, "-m", model)
    command = re.findall(r"^next: (.*)$", done.err, re.MULTILINE)[-1]
    program = shlex.split(command)[2]
    names = re.findall(r"numpy\.load\((.*?)\)\.round", program)
    assert Path(eval(names[0])) == matrix.with_suffix(".out.npy")


def test_arrays_of_any_name(classifier: Path, tmp_path: Path, call: Command) -> None:
    ordinary = [name for name in (*NAMES, TAG, "file", "../a") if is_plain_text(name) and ".." not in name]
    arrays = {name: np.zeros((2, 4, 4, 1), np.float32) for name in ordinary}
    arrays.pop("file")  # numpy.savez takes it for its own argument
    np.savez(tmp_path / "x.npz", **arrays)
    done = call("infer", tmp_path / "x.npz", "-m", classifier)
    assert done.code == 0
    rows = [tuple(map(text_of_field, line.split("\t"))) for line in done.out.split("\n")[:-1]]
    assert rows == [(name, CLASSES[0]) for name in arrays for _ in range(2)]
    assert call("infer", tmp_path / "x.npz", "-m", classifier, "--format", "npz").code == 0
    with np.load(tmp_path / "x.out.npz") as results:
        assert set(results) == arrays.keys()


def test_no_input_is_lost_because_another_has_its_name(tmp_path: Path) -> None:
    np.savez(tmp_path / "x.npz", **{"a.npy": np.zeros((2, 2)), "b": np.zeros((2, 2))})
    np.save(tmp_path / "x.npz: a.npy", np.ones((2, 2)))
    metadata = Metadata("0", (2, 2), "unrolled", "N H W C", 1, 1)
    declared = [TensorSpec("x", "float32", (None, 2, 2, 1))]
    assert len(list(user_cases(metadata, declared, [tmp_path / "x.npz"]))) == 2
    with pytest.raises(InputError, match="two inputs are called"):
        list(user_cases(metadata, declared, [tmp_path / "x.npz", tmp_path / "x.npz: a.npy"]))


@pytest.mark.parametrize("field", ["classes", "task", "model", "version", "output_names"])
def test_metadata_with_such_names_are_refused_in_one_line(
    field: str, tmp_path: Path, call: Command
) -> None:
    name = "\x1b[2J\nforged"
    model = crafted(**{field: json.dumps([name] if field in ("classes", "output_names") else name)})
    (tmp_path / "model.onnx").write_bytes(model.SerializeToString())
    for verb in (("info",), ("infer", tmp_path / "x.npy", "-m"), ("verify",)):
        np.save(tmp_path / "x.npy", np.zeros((2, 2)))
        done = call(*verb, tmp_path / "model.onnx")
        assert done.code == 2 and f"'{field}'" in done.err
        assert done.err.count("\n") == 1


def test_a_run_of_any_name(trained: Run, tmp_path: Path, call: Command) -> None:
    run = tmp_path / EVIL
    shutil.copytree(trained.folder, run)
    for arguments in (
        ("info", run),
        ("report", run),
        ("export", run, "--size", "6"),
        ("verify", run / "model-8x8.onnx", "--seeds", "1"),
        ("export", tmp_path / "none\n", "--size", "6"),
        ("train", "--resume", tmp_path / "none\nforged"),
        ("train", "-c", tmp_path / "none\nforged"),
    ):
        done = call(*arguments)
        check_readable(done.out)
        assert done.code == (2 if "none" in str(arguments) else 0), done.err
    page = (run / "report.html").read_text(encoding="utf-8")
    check_readable(page)
    assert "<script" not in page and "e\\x1b[2J\\nforged\\t$\\frac$&lt;script&gt;" in page


def test_data_of_any_name(tmp_path: Path, call: Command) -> None:
    """From a folder of a stranger's images to a report, an export and its labels."""
    classes = ("$\\frac$", "<script>b&", "=1+1")
    data = write_classes(tmp_path / EVIL, dict.fromkeys(classes, 4), (6, 6))
    for name, path in zip(NAMES, sorted(data.glob("*/*.png")), strict=False):
        path.rename(path.with_name(f"{name}.png"))
    (data / classes[0] / "\x1b[2J\nbroken.png").write_bytes(b"no image")
    run = tmp_path / f"run {EVIL}"
    options = ("--task", "classify", "--data", data, "--steps", 1, "--hidden", 2, "-o", run)
    done = call("train", *options, "-v")
    assert done.code == 0, done.err
    model = run / "model-6x6.onnx"
    for arguments in (("report", run, "--data", data), ("export", run), ("info", run), ("info", model)):
        done = call(*arguments)
        check_readable(done.out)
        assert done.code == 0, done.err
    page = (run / "report.html").read_text(encoding="utf-8")
    check_readable(page)
    assert "<script" not in page and "&lt;script&gt;b&amp;" in page
    done = call("infer", data, "-m", model, "-o", tmp_path / "t.csv")
    assert done.code == 1 and "\nfailed: " in done.err
    with (tmp_path / "t.csv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    assert {os.fsencode(text_of_field(row["file"])) for row in rows} == {
        os.fsencode(path) for path in data.glob("*/*.png") if "broken.png" not in path.name
    }
    assert {row["label"] for row in rows} <= set(classes)


def test_classes_that_no_model_may_have_are_refused_before_training(tmp_path: Path, call: Command) -> None:
    for name in ("a\x1b[2J", "a\nforged", "\u202eb", os.fsdecode(b"caf\xe9")):
        data = write_classes(tmp_path / ascii(name) / "data", {name: 4, "other": 4})
        done = call("train", "--task", "classify", "--data", data, "--steps", 1, "-o", tmp_path / "run")
        assert done.code == 2
        assert len(done.err.splitlines()) == 1
        assert not (tmp_path / "run").exists()


def test_usage_errors_are_one_line(call: Command) -> None:
    for arguments in (
        ("infer\nforged",),
        ("infer", "--x\x1b[2J\nforged"),
        ("infer", "a", "--device", "a\nforged"),
    ):
        done = call(*arguments)
        assert done.code == 2
        assert done.err.count("\n") == 1


def test_what_programs_read_is_utf_8_in_every_locale(classifier: Path, tmp_path: Path) -> None:
    for name in ("日本", os.fsdecode(b"caf\xe9")):
        np.save(tmp_path / f"{name}.npy", np.zeros((4, 4)))
    for form, read in (("txt", str), ("json", json.loads)):
        call = ("infer", tmp_path, "-m", classifier, "--format", form, "-q")
        done = mdlstm_process(*call, env={"PYTHONIOENCODING": "ascii", "PYTHONUTF8": "0"})
        assert (done.code, done.err) == (0, "")
        assert "日本" in done.out and "caf\\udce9" in done.out
        read(done.out)
