"""A kind of one's own is as much a kind as those of the package: flags, options and metadata."""

from __future__ import annotations

import json
import pickle
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any
from zipfile import ZipFile

import numpy as np
import pytest
from helpers.command import mdlstm
from helpers.crafted_models import node
from helpers.refusal import refused
from helpers.small_models import write_model
from helpers.tiled_models import single

from mdlstm_tk._util.user_code import import_file, imported_files
from mdlstm_tk.errors import InputError
from mdlstm_tk.kinds import Kind, kind_named, kind_names, register_kind
from mdlstm_tk.kinds.options import OF_COMMAND_LINE
from mdlstm_tk.runtime import Metadata, TiledSession, decode, infer_paths
from mdlstm_tk.runtime.ray import TilesWorker
from mdlstm_tk.runtime.tiles.archive import INDEX
from mdlstm_tk.training import configure

CODE = """
from dataclasses import dataclass
from mdlstm_tk.kinds import LINES, Answer, Kind, Option, register_kind
from mdlstm_tk.runtime import Metadata

@dataclass(frozen=True)
class SumMetadata(Metadata):
    scale: float = 1.0

class Unit:
    factor = 100

class Sums(Kind):
    name, answers, formats, is_printed, sample_axes = "sums", "sums", LINES, True, 1
    metadata_class = SumMetadata
    options = (
        Option("offset", LINES, "Number to add to each sum.", float, "NUMBER", least=0),
        Option("unit", LINES, "Unit of the sums.", str, "NAME", place=Unit),
    )

    def decode(self, y, metadata, array, options, width):
        unit = options.of_kind.get("unit")
        factor = getattr(unit, "factor", 1) * metadata.scale
        sums = [float(each.sum()) * factor + options.of_kind.get("offset", -1) for each in y.reshape(-1)]
        return [Answer(f"{each:g}{unit or ''}" if isinstance(unit, str) else f"{each:g}") for each in sums]

register_kind(Sums())
"""


@pytest.fixture(autouse=True)
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fresh_registries: None) -> None:
    """The current folder, with the file of a kind, a model of it and an input."""
    monkeypatch.chdir(tmp_path)
    Path("own.py").write_text(CODE)
    np.save("x.npy", np.ones((4, 4), np.float32))


def write_sums() -> None:
    """A model of the kind, which must be registered."""
    nodes, axes = [node("ReduceSum", "x axes", "y", keepdims=0)], {"axes": np.int64([1, 2])}
    write_model(Path("m.onnx"), nodes, axes, axes=2, window=None, kind="sums", scale=0.5)


def test_options_of_an_own_kind_have_flags(forget: Callable[[], None]) -> None:
    import_file(Path("own.py"))
    write_sums()
    call = ("x.npy", "-m", "m.onnx", "--device", "cpu")
    for words in (
        ("--import", "own.py", "infer", *call, "--offset", "0", "--unit", "kg"),
        ("--import=own.py", "infer", *call, "--offset", "0", "--unit", "kg"),
        ("infer", *call, "--offset", "0", "--unit", "kg", "--import", "own.py"),
        ("infer", "--import=own.py", *call, "--offset", "0", "--unit", "kg"),
    ):
        forget()
        done = mdlstm(*words)
        assert done.out == "8kg\n", done.err
    module = import_file(Path("own.py"))
    assert infer_paths(["x.npy"], "m.onnx", unit=module.Unit(), offset=0).document is not None
    metadata = Metadata("0", None, "scan", "N H W C", 1, 1, kind="sums", window=None)
    assert [each.text for each in decode(np.float32([2]), metadata, unit=module.Unit())] == ["199"]
    for value, message in ((-1, "give at least 0"), ("much", "offset must be a number")):
        with pytest.raises(InputError, match=message):
            infer_paths(["x.npy"], "m.onnx", offset=value)
    shown = mdlstm("infer", "--help").out
    assert "--offset NUMBER" in shown and "For kind sums as txt" in shown and "baselines, sums" in shown


@pytest.mark.slow
def test_workers_of_ray_know_an_own_kind() -> None:
    pytest.importorskip("ray")
    import_file(Path("own.py"))
    write_sums()
    run = infer_paths(
        ["x.npy", "x.npy"], "m.onnx", "y.csv", device="cpu", offset=0, engine="ray", workers=1
    )
    assert [result.error for result in run.results] == [None, None]
    assert Path("y.csv").read_text().count(",8") == 2


@pytest.mark.slow
def test_workers_of_tiles_know_an_own_kind(forget: Callable[[], None]) -> None:
    import_file(Path("own.py"))
    with ZipFile(single().path) as source, ZipFile("sums.tiles", "w") as target:
        for name in source.namelist():
            data = source.read(name)
            if name == INDEX:
                index = json.loads(data)
                index["metadata"] |= {"mdlstm.kind": '"sums"', "mdlstm.scale": "0.5"}
                data = json.dumps(index).encode()
            target.writestr(name, data)
    with TiledSession("sums.tiles", "cpu") as session:
        arguments = str(Path.cwd()), imported_files(), pickle.dumps(session)
        assert type(session.metadata).__name__ == "SumMetadata"
    forget()  # as in a process that has just been started
    assert type(TilesWorker(*arguments)._session.metadata).__name__ == "SumMetadata"


def test_a_flag_is_that_of_an_imported_kind() -> None:
    assert "no such option: --offset" in mdlstm("infer", "x.npy", "--offset", "0").err.lower()
    assert mdlstm("infer", "x.npy", "--import").code == 2
    assert "there is no Python file" in mdlstm("infer", "x.npy", "--import", "").err
    assert "no input file" not in mdlstm("infer", "--", "--import").err  # which is a file here


def test_metadata_of_an_own_kind_have_its_fields() -> None:
    module = import_file(Path("own.py"))
    metadata: Any = Metadata("0", None, "scan", "N H W C", 1, 1, kind="sums", scale=2.0)  # type: ignore[call-arg]
    assert type(metadata) is module.SumMetadata
    assert Metadata.from_props(metadata.to_props(), "m") == metadata


def test_a_value_of_0_is_given() -> None:
    """So it is refused where it has no effect."""
    import_file(Path("own.py"))
    write_model(Path("grid.onnx"))
    with pytest.raises(InputError, match=r"offset=\.\.\. needs a model of kind sums"):
        infer_paths(["x.npy"], "grid.onnx", offset=0)


TOP = next(option for option in kind_named("classify").options if option.name == "top")
TAKEN = {
    "of another kind": replace(TOP, least=0),
    "of another type": replace(TOP, type=str),
    "an argument": replace(TOP, name="batch_size"),
    "an argument of decode": replace(TOP, name="width"),
    "no word": replace(TOP, name="the top"),
    **{f"--{name}": replace(TOP, name=name) for name in OF_COMMAND_LINE},
}


@pytest.mark.parametrize("case", TAKEN)
def test_the_name_of_an_option_has_one_meaning(case: str) -> None:
    kind = type("Mine", (Kind,), {"name": "mine", "options": (TAKEN[case],)})()
    with pytest.raises(InputError, match="register_kind takes another name for the option"):
        register_kind(kind)
    assert "mine" not in kind_names()


def test_kinds_may_share_an_option() -> None:
    kind = type(
        "Mine", (Kind,), {"name": "mine", "answers": "x", "options": (replace(TOP, formats=("csv",)),)}
    )()
    register_kind(register_kind(kind))
    assert "mine as csv" in mdlstm("infer", "--help").out


@pytest.mark.usefixtures("fresh_registries")
def test_a_kind_with_the_name_of_a_task_is_refused() -> None:
    """Its defaults would count, and the task would be trained."""

    class Digits(Kind):
        name = "digits"

    register_kind(Digits())
    refused("'digits' is a task and a kind of task", lambda: configure({"task": "digits"}))
