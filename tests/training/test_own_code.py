"""Cells, networks, tasks and kinds of the user's own. Only files that a call names are run."""

from __future__ import annotations

import json
import multiprocessing
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers.checkout import ROOT
from helpers.command import Result, mdlstm

from mdlstm_tk.data import Dataset, TaskSpec
from mdlstm_tk.errors import InputError
from mdlstm_tk.io.metadata import Metadata
from mdlstm_tk.kinds import Kind, kind_named, kind_names, register_kind
from mdlstm_tk.models import register
from mdlstm_tk.runtime import decode, infer_paths
from mdlstm_tk.training import TrainConfig, build_network, load_checkpoint, resume, train

MINE = """
import numpy as np
import torch
from mdlstm_tk import MDLSTM
from mdlstm_tk.data import Dataset, TaskSpec
from mdlstm_tk.kinds import kind_named
from mdlstm_tk.models import register
from mdlstm_tk.training import register_task


@register("mine", kind="classify")
class Mine(torch.nn.Module):
    def __init__(self, channels, outputs, *, hidden=4, cell="graves"):
        super().__init__()
        self.body, self.head = MDLSTM(channels, hidden, cell=cell), torch.nn.Linear(hidden, outputs)

    def forward(self, x):
        return self.head(self.body(x)[:, -1, -1])


class Bright(Dataset):
    def sums(self, prediction, batch, spec):
        return {"wrong": (prediction.argmax(1) != batch.y).sum(), "count": torch.tensor(len(batch.y))}

    def measures(self, sums, spec):
        return {"mishaps": float(sums["wrong"] / sums["count"])}


@register_task("bright", kind="classify", defaults={"hidden": 3, "lr": 0.125})
def bright(config):
    x = np.random.default_rng(0).random((24, 4, 5, 1), np.float32)
    samples = [(each, int(each[0, 0, 0] > 0.5)) for each in x]
    spec = TaskSpec("bright", "classify", 1, 2, (4, 5), ("no", "yes"))
    return Bright(spec, {"train": samples[:16], "validation": samples[16:]}, kind_named("classify"))
"""
FILES = ("--import", "cells.py", "--import=mine.py", "--import", "own_kind.py")
OWN: dict[str, tuple[str, ...]] = {  # how each is trained; the cell has no recurrent weights
    "task, network and cell": ("--task", "bright", "--model", "mine", "--cell", "input-gated"),
    "kind": ("--task", "counting", "--data", "dots.npz"),
}


@pytest.fixture
def call(tmp_path: Path, forget: Callable[[], None]) -> Callable[..., Result]:
    """Calls `mdlstm`, which knows what comes with the package and what the call imports, and must end
    with a code."""
    shutil.copy(ROOT / "examples/own_cell.py", tmp_path / "cells.py")
    shutil.copy(ROOT / "examples/own_kind.py", tmp_path)
    (tmp_path / "mine.py").write_text(MINE)
    x = np.random.default_rng(0).random((24, 4, 5)) > 0.7
    np.savez(tmp_path / "dots.npz", x=np.float32(x), y=x.sum((1, 2)))
    np.save(tmp_path / "x.npy", np.float32(x[0]))

    def run(*arguments: object, code: int = 0) -> Result:
        forget()
        done = mdlstm(*arguments, cwd=tmp_path)
        assert done.code == code, done.err
        return done

    return run


@pytest.mark.parametrize("own", [next(iter(OWN)), pytest.param("kind", marks=pytest.mark.slow)])
def test_own_code_from_training_to_inference(
    own: str, tmp_path: Path, call: Callable[..., Result], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Workers that do not inherit what was registered read the same batches."""
    monkeypatch.setattr(multiprocessing.context._default_context, "_actual_context", None)
    multiprocessing.set_start_method("spawn" if own == "kind" else "forkserver")
    monkeypatch.chdir(tmp_path)
    short = ("train", *OWN[own], "--steps", 3, "--batch-size", 4)
    weights = []
    for workers in (0, 2):
        call(*FILES, *short, "--workers", workers, "-o", f"run{workers}")
        weights.append(load_checkpoint(tmp_path / f"run{workers}/last.safetensors").tensors)
    assert all(torch.equal(weights[0][name], each) for name, each in weights[-1].items())
    stored = b"".join(file.read_bytes() for file in Path("run0").glob("*.*"))
    assert not any(name in stored for name in (b"mine.py", b"own_kind.py", b"cells.py"))  # it names no code
    if own != "kind":
        assert json.loads(Path("run0/result.json").read_text())["errors"].keys() == {"mishaps"}
        assert load_checkpoint(Path("run0/last.safetensors")).config.lr == 0.125
    assert "--import FILE" in call("train", "--resume", "run0", "--steps", 4, code=2).err
    call(*FILES, "train", "--resume", "run0", "--steps", 4)
    done = call(*FILES, "export", "run0", "--form", "scan", "-o", "m.onnx")
    assert "next: mdlstm --import cells.py --import own_kind.py --import=mine.py infer" in done.err
    call("infer", "x.npy", "-m", "m.onnx", "-o", "y.npy" if own == "kind" else "y.csv")  # without the files
    if own == "kind":
        done = call(*FILES, "infer", "x.npy", "-m", "m.onnx", "--json")
        (answer,) = json.loads(done.out)["files"][0]["answers"]
        assert answer["count"] == pytest.approx(float(np.exp(np.load("y.npy")).item()), abs=0.01)


class Sums(Kind):
    name, answers, axes = "sums", "rows", "N"
    samples = fit = collate = loss = sums = measures = None  # type: ignore[assignment]

    def decode(self, y: Any, metadata: Metadata, *, offset: float = -1) -> Any:  # type: ignore[override]
        return [{"sum": float(each.sum()) * metadata.more.get("scale", 1) + offset} for each in y]


@pytest.mark.usefixtures("fresh_registries")
def test_keyword_arguments_of_decode_are_options() -> None:
    assert register_kind(Sums()) is kind_named("sums")
    layout: dict[str, Any] = {"layout": "N H W C", "channels": 1, "outputs": 1, "window": None}
    metadata = Metadata(version="0", form="scan", **layout, kind="sums", more={"scale": 2.0})
    assert Metadata.from_props(metadata.to_props(), "m") == metadata
    assert decode(np.float32([2]), metadata, offset=5) == [{"sum": 9.0}]
    with pytest.raises(InputError):
        decode(np.float32([2]), metadata, top=2)
    before = kind_names()
    for name in ("classify", "density"):
        with pytest.raises(InputError):
            register_kind(type("Mine", (Sums,), {"name": name})())
    assert kind_names() == before


@pytest.mark.usefixtures("fresh_registries")
def test_tasks_and_networks_are_given_in_python(tmp_path: Path) -> None:
    """A network gets the settings whatever its own defaults are."""
    given: dict[str, Any] = {}

    @register("flat", kind="regress")
    def flat(channels: int, outputs: int, *, hidden: int = 7, cell: str = "", layers: int = 9) -> Any:
        given.update(hidden=hidden, cell=cell, layers=layers)
        return torch.nn.Sequential(torch.nn.AdaptiveAvgPool3d((1, 1, channels)), torch.nn.Flatten())

    rng = np.random.default_rng(0)
    samples = [(rng.random((4, 5 + k % 2, 1), np.float32) + 20, np.float32([3])) for k in range(8)]
    spec = TaskSpec("own", "regress", 1, 1, (4, 6), ("weight",), (20.0,), (0.5,), (1000.0,), (0.5,))
    config = TrainConfig(model="flat", steps=2, hidden=2)
    assert build_network(config, spec)(torch.full((2, 4, 5, 1), 20.0)).tolist() == [[1000.0]] * 2
    assert given == {"hidden": 2, "cell": "", "layers": 1}

    def task(*held_out: Any) -> Dataset:
        return Dataset(spec, {"train": samples[:4], "validation": held_out}, kind_named("regress"))

    own = TrainConfig(steps=2, hidden=2, evaluate_every=1)
    assert train(own, tmp_path / "run", task=task(*samples))["errors"].keys() == {"nmse", "r2"}
    assert train(own, tmp_path / "none", task=task())["errors"] == {}
    assert resume(tmp_path / "run", task=task(*samples), steps=3)["ending"] == "done 3 steps"


@pytest.mark.slow
def test_workers_of_ray_know_an_own_kind(tmp_path: Path, call: Callable[..., Result]) -> None:
    pytest.importorskip("ray")
    call(*FILES, "train", *OWN["kind"], "--steps", 1, "-o", "run")
    call(*FILES, "export", "run", "--form", "scan", "-o", "m.onnx")
    run = infer_paths([tmp_path / "x.npy"] * 2, tmp_path / "m.onnx", device="cpu", digits=0, workers=1)
    assert [result.error for result in run] == [None, None]
