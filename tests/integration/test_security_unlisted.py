"""Attacks of the classes that the security audit of version 0.1 found, in places that it did not list.

Run folders that name code elsewhere, files that are pipes or endless, settings of other packages in the
current folder, names of folders and characters in them, and constants in unusual places.
"""

from __future__ import annotations

import json
import os
import pickle
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from importlib.util import find_spec
from itertools import pairwise
from pathlib import Path

import numpy as np
import onnx
import pytest
from fuzz.outcome import unclean
from helpers.checkout import ROOT
from helpers.crafted_models import FLOAT, INT64, crafted, info, node
from helpers.foreign_models import body, function, loop, own_node, stored
from helpers.foreign_models import crafted as foreign
from helpers.requirements import missing
from helpers.strangers import (
    BIDI,
    ESCAPES,
    call,
    change_checkpoints,
    fake_programs,
    npz_with_names,
    pipe,
)
from onnx import helper

from mdlstm_tk.errors import InputError, MDLSTMError
from mdlstm_tk.runtime import Session
from mdlstm_tk.runtime.security.model_check import check_model

pytestmark = [
    pytest.mark.skipif(sys.platform == "win32", reason="pipes and permissions are those of POSIX"),
    pytest.mark.timeout(60),  # a pipe is waited for without end
]
RUN, MODEL = Path("runs/diagonal"), Path("runs/diagonal/model-any.onnx")
TEXTS = Path("runs/transcribe")


def test_code_is_not_run_for_another_run_to_compare_with(place: Path) -> None:
    shutil.copytree(RUN, "runs/other")
    change_checkpoints(Path("runs/other"), cell="runs/other/evil.py:md")
    called = call("verify", MODEL, "--against", "runs/other")
    assert "evil.py" in called.err


@pytest.mark.parametrize("setting", ["task", "data", "device", "init", "windows"])
def test_code_is_not_run_in_place_of_other_settings(setting: str, place: Path) -> None:
    change_checkpoints(RUN, **{setting: "evil.py:md"})
    call("info", RUN, code=(0, 2))
    call("train", "--resume", RUN, "--steps", "6", code=(1, 2))
    call("train", "-c", RUN / "config.toml", "--steps", "2", "-o", "new", code=(1, 2))


def test_a_folder_of_the_hub_is_not_unpickled(place: Path) -> None:
    if find_spec("huggingface_hub") is None:
        missing("huggingface_hub is not installed")
    from mdlstm_tk.models import MDNet

    class Evil:
        def __reduce__(self) -> object:
            return (Path.write_text, (Path("EXECUTED"), "yes"))

    folder = Path("hub")
    MDNet(1, 1).save_pretrained(folder)
    (folder / "model.safetensors").unlink()
    (folder / "pytorch_model.bin").write_bytes(pickle.dumps(Evil()))
    with pytest.raises((MDLSTMError, OSError)):
        MDNet.from_pretrained(folder)
    assert not Path("EXECUTED").exists()


def test_settings_of_other_packages_in_the_current_folder_run_nothing(place: Path) -> None:
    """Matplotlib reads matplotlibrc, and Numba .numba_config.yaml, from the current folder."""
    marker = fake_programs(place / "fake", "latex", "tex", "dvipng", "pdflatex", "kpsewhich")
    Path("matplotlibrc").write_text("text.usetex: True\nbackend: module://evil\nsvg.fonttype: path\n")
    Path(".numba_config.yaml").write_text("cache_locator_classes: evil.md\ncache_dir: runs\n")
    before = set(place.rglob("*"))
    code = "from mdlstm_tk.cli import main; main(['report', 'runs/diagonal', '-o', 'out.html'])"
    environment = {
        **os.environ,
        "PYTHONPATH": f"{ROOT}",
        "PATH": f"{place / 'fake/bin'}:{os.environ['PATH']}",
    }
    command = [sys.executable, "-P", "-c", code]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert not marker.exists() and not Path("EXECUTED").exists()
    assert {path.name for path in set(place.rglob("*")) - before} == {"out.html"}


@pytest.mark.parametrize("kind", ["pipe", "endless", "folder"])
def test_files_of_a_run_that_are_no_files_end_in_one_line(kind: str, place: Path) -> None:
    def replace(path: Path) -> None:
        path.unlink()
        if kind == "pipe":
            pipe(path)
        elif kind == "folder":
            path.mkdir()
        else:
            path.symlink_to("/dev/zero")

    replace(TEXTS / "config.toml")
    call("train", "-c", TEXTS / "config.toml", "-o", "new", code=(1, 2))
    for name in ("config.toml", "metrics.jsonl", "result.json", "times.json"):
        replace(RUN / name)
    call("info", RUN, code=(0, 1, 2))
    call("report", RUN, "-o", "out.html", code=(0, 1, 2))
    call("train", "--resume", RUN, "--steps", "6", code=(0, 1, 2))
    replace(TEXTS / "last.safetensors")
    (TEXTS / "best.safetensors").unlink()
    call("info", TEXTS)


def test_data_that_are_no_files_end_in_one_line(place: Path) -> None:
    pipe(Path("data/transcribe/0.png"))
    Path("data/transcribe/1.png").unlink()
    Path("data/transcribe/1.png").symlink_to("/dev/zero")
    Path("data/transcribe/classes.txt").symlink_to("/dev/zero")
    options = ("--data", "data/transcribe", "-o", "out.html", "--force")
    call("report", TEXTS, *options, code=(0, 1, 2))
    pipe(Path("data/transcribe/labels.tsv"))
    call("report", TEXTS, *options, code=(0, 1, 2))
    call("infer", "data/transcribe", "-m", TEXTS, "--device", "cpu", "-o", "all.csv", code=(0, 1, 2))


def test_models_that_are_no_files_end_in_one_line(place: Path) -> None:
    np.save("x.npy", np.eye(4, dtype=np.float32))
    Path("folder.onnx").mkdir()
    Path("endless.onnx").symlink_to("/dev/zero")
    pipe(Path("pipe.onnx"))
    for name in ("folder.onnx", "endless.onnx", "pipe.onnx"):
        call("info", name, "--max-bytes", 10**6, code=(1, 2))
        call("infer", "x.npy", "-m", name, "--max-bytes", 10**6, code=(1, 2))
        call("verify", name, "--max-bytes", 10**6, code=(1, 2))


def constant_shape() -> onnx.ModelProto:
    """A shape of 100,000 ones that is an attribute of a Constant rather than a tensor."""
    return crafted([node("Constant", "", "s", value_ints=[1] * 100_000), node("Reshape", "x s", "y")])


def joined_shape() -> onnx.ModelProto:
    """A shape that is put together from many short ones."""
    ones = stored("ones", INT64, [8], [1] * 8)
    nodes = [node("Concat", " ".join(["ones"] * 10_000), "s", axis=0), node("Reshape", "x s", "y")]
    return crafted(nodes, [ones])


def nested_scans(levels: int = 3) -> onnx.ModelProto:
    inner = node("Neg", "v", "w")
    for _ in range(levels):
        graph = helper.make_graph([inner], "body", [info("v")], [info("w")])
        inner = node("Scan", "v", "w", body=graph, num_scan_inputs=1)
    inner.input[0], inner.output[0] = "x", "y"
    return crafted([inner])


def huge_signature() -> onnx.ModelProto:
    model = crafted()
    model.graph.input.append(info("z", FLOAT, (1,) * 100_000))
    return model


def shared_constant() -> onnx.ModelProto:
    """A function that takes an attribute, a large tensor, which each of many nodes refers to."""
    constant = node("Constant", "", "c")
    constant.attribute.append(
        onnx.AttributeProto(name="value", ref_attr_name="v", type=onnx.AttributeProto.TENSOR)
    )
    own = function("f", constant, node("Neg", "a", "b"), attributes=["v"])
    large = stored("v", FLOAT, [10**6], bytes(4 * 10**6), raw=True)
    return foreign([own_node("f", "x", "y", v=large)], functions=[own], domains=("", "own"))


def overloaded() -> onnx.ModelProto:
    """A function of the same name twice, with other overloads."""
    functions = [function("f", node("Neg", "a", "b")), function("f", node("Exp", "a", "b"))]
    functions[1].overload = "other"
    return foreign([own_node("f", "x", "y")], functions=functions, domains=("", "own"))


REFUSED: dict[str, Callable[[], onnx.ModelProto]] = {
    "a shape in an attribute": constant_shape,
    "a shape of many parts": joined_shape,
    "scans in scans": nested_scans,
    "a loop of the domain ai.onnx": lambda: crafted(
        [node("Loop", " x x", "y", body=body(), domain="ai.onnx")]
    ),
    "a loop": lambda: crafted([loop(body(node("Neg", "v", "v_out"), node("Identity", "go", "go_on")))]),
    "an input of many axes": huge_signature,
    "a function with an attribute": shared_constant,
    "a function with overloads": overloaded,
}


@pytest.mark.parametrize("case", REFUSED)
def test_models_are_refused_before_they_are_loaded(case: str) -> None:
    with pytest.raises(InputError) as refused:
        check_model(REFUSED[case]().SerializeToString(), "m.onnx", 10**8)
    assert not unclean(str(refused.value))


def doubled(times: int = 60) -> onnx.ModelProto:
    """x is joined to itself, again and again: 2^60 numbers."""
    names = ["x", *(f"t{k}" for k in range(times))]
    return crafted(
        [*(node("Concat", f"{a} {a}", b, axis=1) for a, b in pairwise(names)), node("Neg", "x", "y")]
    )


def test_results_that_grow_without_end_are_stopped() -> None:
    """No model check can tell, as the grid may be of any size."""
    with (
        pytest.raises(MDLSTMError) as ended,
        Session(doubled().SerializeToString(), "cpu", isolated=True, timeout=5, max_bytes=10**7) as session,
    ):
        session(np.eye(2, dtype=np.float32))
    assert not unclean(str(ended.value))


def test_one_bomb_does_not_take_the_other_files_down(place: Path) -> None:
    folder = Path("in")
    folder.mkdir()
    for k in range(3):
        np.save(folder / f"{k}.npy", np.eye(4, dtype=np.float32))
    np.savez_compressed(folder / "bomb.npz", a=np.zeros((3000, 3000), np.float32))
    options = ("-m", RUN, "-o", "out", "--device", "cpu", "--json", "--max-bytes", 10**7, "--timeout", "30")
    called = call("infer", folder, *options, code=1)
    records = {Path(r["source"]).name: r["error"] for r in json.loads(called.out)["files"]}
    assert [name for name, error in records.items() if error] == ["bomb.npz"]
    assert len(list(Path("out").rglob("*.npy"))) == 3


@pytest.mark.skipif(sys.platform != "linux", reason="finds child processes in /proc")
def test_a_process_that_is_killed_is_reported_and_replaced(place: Path) -> None:
    x, others = np.eye(4, dtype=np.float32), children()
    with Session(MODEL, "cpu", isolated=True, timeout=30) as session:
        y = session(x)
        before = children() - others
        assert before
        for child in before:
            os.kill(child, signal.SIGKILL)
        with pytest.raises(MDLSTMError) as ended:
            session(x)
        assert not unclean(str(ended.value))
        np.testing.assert_array_equal(session(x), y)
    assert not children() & before


def children() -> set[int]:
    """The child processes of this one."""
    tasks = Path("/proc/self/task").glob("*/children")
    return {int(child) for path in tasks for child in path.read_text().split()}


NAMES = [
    ESCAPES,
    "a\nerror: forged",
    "a\tb",
    BIDI,
    "[red]x[/y]",
    "<img src=x onerror=alert(1)>",
    "{{ 1 }}",
]
ALL_NAMES = "".join(NAMES)  # report and export take longer, so they get all of it in one name


@pytest.mark.parametrize("name", [*NAMES, "\udc80", ALL_NAMES], ids=ascii)
def test_the_name_of_a_run_forges_nothing(name: str, place: Path) -> None:
    run = Path("runs", name.replace("/", "_"))
    RUN.rename(run)
    model = run / MODEL.name
    np.save("x.npy", np.eye(4, dtype=np.float32))
    if call("info", run, code=(0, 2)).code:  # safetensors opens no file whose name is not UTF-8
        assert name == "\udc80"
        return
    json.loads(call("info", run, "--json", code=0).out)
    call("infer", "x.npy", "-m", run, "-o", "y.npy", "--device", "cpu", code=0)
    if name == ALL_NAMES:
        call("report", run, "-o", "out.html", code=0)
        page = Path("out.html").read_text()
        assert "<img src=x" not in page and not unclean(page.replace("\t", " "), lines=10**6)
        call("export", run, "--form", "scan", "--force", "--json", code=0)
        assert model.exists()


def test_the_names_of_files_forge_no_results(place: Path) -> None:
    data = Path("data/transcribe")
    names = [
        "a\tb.png",
        "a\nb.png",
        f"{ESCAPES.replace('/', '')}.png",
        "\udc80.png",
        "a\\tb.png",
        f"{BIDI}.png",
    ]
    for path, name in zip(sorted(data.glob("*.png")), names, strict=False):
        path.rename(data / name)
    options = ("infer", data, "-m", TEXTS, "--device", "cpu")
    count = len(list(data.glob("*.png")))
    text = call(*options, code=0).out
    assert len(text.splitlines()) == count and all(line.count("\t") == 1 for line in text.splitlines())
    records = json.loads(call(*options, "--format", "json", code=0).out)
    assert len(records) == count
    summary = json.loads(call(*options, "--json", code=0).out)
    assert {Path(record["source"]).name for record in summary["files"]} == {
        p.name for p in data.glob("*.png")
    }


def test_the_names_of_arrays_forge_nothing(place: Path) -> None:
    Path("x.npz").write_bytes(npz_with_names("same", "same"))
    call("infer", "x.npz", "-m", RUN, "-o", "y.npz", "--device", "cpu", "--force", code=2)
    Path("x.npz").write_bytes(npz_with_names("__proto__", "constructor", "[b]", "日本"))
    called = call("infer", "x.npz", "-m", RUN, "-o", "-", "--format", "json", "--device", "cpu", code=0)
    assert list(json.loads(called.out)) == ["__proto__", "constructor", "[b]", "日本"]


def test_the_shell_completes_no_commands(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from mdlstm_tk.cli.options import complete_model_or_run

    for name in (ESCAPES.replace("/", "_"), "a\nb", "$(touch EXECUTED)"):
        shutil.copytree(RUN, Path("runs", name))
    offered = complete_model_or_run("")
    assert str(RUN) in offered
    assert not [word for word in offered if unclean(word)]


def test_classes_of_a_folder_forge_nothing_when_training(place: Path) -> None:
    from helpers.user_data import write_classes

    data = write_classes(Path("classes"), {"plain": 6, "a\nb": 6, ESCAPES.replace("/", "_"): 6, "[/y]": 6})
    options = (
        "--steps",
        2,
        "--hidden",
        2,
        "--batch-size",
        4,
        "--device",
        "cpu",
        "--set",
        "evaluate_every=2",
    )
    called = call("train", "--task", "classify", "--data", data, *options, "-o", "new", code=(0, 2))
    if called.code == 0:
        call("info", "new", code=0)
        call("report", "new", "--data", data, code=0)
        call("export", "new", "--form", "scan", code=(0, 2))
