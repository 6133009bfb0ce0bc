"""A kind of one's own is as much a kind as those of the package."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from helpers.command import mdlstm
from helpers.crafted_models import node
from helpers.refusal import refused
from helpers.small_models import write_model

from mdlstm_tk._util.user_code import import_file
from mdlstm_tk.io.metadata import Metadata
from mdlstm_tk.kinds import Kind, kind_names, register_kind
from mdlstm_tk.runtime import decode, infer_paths
from mdlstm_tk.training import configure

CODE = """
from mdlstm_tk.kinds import Kind, register_kind

class Sums(Kind):
    name, gives_rows, sample_axes = "sums", True, 1

    def decode(self, y, metadata, *, offset=-1):
        return [{"sum": float(each.sum()) * metadata.more.get("scale", 1) + offset} for each in y]

register_kind(Sums())
"""


@pytest.fixture(autouse=True)
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fresh_registries: None) -> None:
    """The current folder, with the file of a kind, a model of it and an input."""
    monkeypatch.chdir(tmp_path)
    Path("own.py").write_text(CODE)
    np.save("x.npy", np.ones((4, 4), np.float32))
    nodes, axes = [node("ReduceSum", "x axes", "y", keepdims=0)], {"axes": np.int64([1, 2])}
    write_model(Path("m.onnx"), nodes, axes, axes=2, window=None, kind="sums", scale=0.5)


def test_answers_are_those_of_the_kind_that_was_imported(forget: Callable[[], None]) -> None:
    for words in (("--import", "own.py"), ("--import=own.py",)):
        forget()
        done = mdlstm(*words, "infer", "x.npy", "-m", "m.onnx", "--device", "cpu")
        assert done.out == "7.0\n", done.err
    forget()
    assert mdlstm("infer", "x.npy", "-m", "m.onnx", "-o", "y.npy").code == 0  # numbers, without the kind
    assert np.load("y.npy").tolist() == [16]
    assert mdlstm("--import", "none.py", "infer", "x.npy", "-m", "m.onnx").code == 2


def test_keyword_arguments_of_decode_are_options() -> None:
    import_file(Path("own.py"))
    (result,) = infer_paths(["x.npy"], "m.onnx", device="cpu", offset=0)
    assert result.rows == [{"file": "x.npy", "sum": 8.0}]
    layout = {"version": "0", "form": "scan", "layout": "N H W C", "channels": 1, "outputs": 1}
    metadata = Metadata(**layout, kind="sums", window=None, more={"scale": 2.0})  # type: ignore[arg-type]
    assert Metadata.from_props(metadata.to_props(), "m") == metadata
    assert decode(np.float32([2]), metadata, offset=5) == [{"sum": 9.0}]
    write_model(Path("grid.onnx"), kind="grid")
    for model, options in (("m.onnx", {"top": 2}), ("grid.onnx", {"offset": 0})):
        refused(next(iter(options)), lambda m=model, o=options: infer_paths(["x.npy"], m, **o))  # type: ignore[misc]


@pytest.mark.slow
def test_workers_of_ray_know_an_own_kind() -> None:
    pytest.importorskip("ray")
    import_file(Path("own.py"))
    run = infer_paths(["x.npy", "x.npy"], "m.onnx", "y.csv", device="cpu", offset=0, workers=1)
    assert [result.error for result in run] == [None, None]
    assert Path("y.csv").read_text() == "file,sum\nx.npy,8.0\nx.npy,8.0\n"


@pytest.mark.parametrize("name", ["classify", "two words"])
def test_the_name_of_a_kind_is_a_word_of_its_own(name: str) -> None:
    before = kind_names()
    refused("register_kind", lambda: register_kind(type("Mine", (Kind,), {"name": name})()))
    assert kind_names() == before


def test_a_kind_with_the_name_of_a_task_is_refused() -> None:
    """Its defaults would count, and the task would be trained."""
    register_kind(type("Digits", (Kind,), {"name": "digits"})())
    refused("'digits' is a task and a kind of task", lambda: configure({"task": "digits"}))
