"""`mdlstm_tk.runtime.combinations`: what `mdlstm infer` is asked for is refused before the first run, or
it is done, and each option shows in the result."""

from __future__ import annotations

import csv
import io
import json
import re
import shutil
import xml.etree.ElementTree as ET
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import pytest
from helpers import tiled_models
from helpers.command import mdlstm
from helpers.pages import draw_page
from helpers.small_models import SCORES, classifier, density, node, recogniser, segmenter, write_model
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from mdlstm_tk.errors import InputError
from mdlstm_tk.kinds import kind_named
from mdlstm_tk.runtime import CharacterModel, Metadata
from mdlstm_tk.runtime.combinations import LINES, check_jobs
from mdlstm_tk.runtime.io import FORMATS
from mdlstm_tk.runtime.jobs import Job
from mdlstm_tk.runtime.runner import LocalRunner

TWO: dict[str, Any] = {"output_names": ("y", "z"), "further_windows": (None,)}
WIDE = [node("MatMul", "x weights", "y")]
MODELS: dict[str, Callable[[Path], Any]] = {
    "grid": write_model,
    "three": partial(write_model, nodes=WIDE, constants={"weights": SCORES["weights"]}, outputs=3),
    "wide": partial(write_model, nodes=WIDE, constants={"weights": np.ones((1, 5), "f")}, outputs=5),
    "classify": classifier,
    "segment": segmenter,
    "transcribe": partial(recogniser, lm_weight=1.0, character_bonus=0.0),
    "density": density,
    "two": partial(write_model, **TWO),
    "two classify": partial(classifier, **TWO),
    "two segment": partial(segmenter, **TWO),
    "two transcribe": partial(recogniser, **TWO),
    "tiled segment": lambda path: tiled_models.segmenter().path,
    "tiled classify": lambda path: tiled_models.classifier().path,
    "tiled grid": lambda path: tiled_models.single().path,
}
ANSWERING = ("classify", "transcribe", "density")
SOURCES = ("a.npy", "b.png", "c.npz", "in", "-", "page/p.xml")
TILED_SOURCES = ("a.npy", "in", "-", "page/p.xml")
OPTIONS = {
    "--probabilities": (),
    "--top": ("2",),
    "--beam": ("4",),
    "--lm": ("lm.arpa",),
    "--skip-existing": (),
    "--force": (),
    "--json": (),
    "--batch-size": ("1",),
}


@st.composite
def combinations(
    draw: st.DrawFn, models: Sequence[str]
) -> tuple[str, str, str | None, str | None, list[str]]:
    """A model, a source, a target, a format, and options."""
    model = draw(st.sampled_from(models))
    target = draw(st.sampled_from([None, None, "-", "out/", *(f"y.{each}" for each in FORMATS)]))
    form = draw(st.sampled_from([None, None, None, *FORMATS]))
    options = draw(st.lists(st.sampled_from(sorted(OPTIONS)), max_size=3, unique=True))
    return (
        model,
        draw(st.sampled_from(TILED_SOURCES if "tiled" in model else SOURCES)),
        target,
        form,
        options,
    )


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of inputs for models of one channel, and one for those of three."""
    place = tmp_path_factory.mktemp("combinations")
    for folder, shape in ((place / "grey", (4, 1)), (place / "colours", (8, 8, 3))):
        (folder / "in").mkdir(parents=True)
        for name in ("a.npy", "in/a.npy", "in/b.npy"):
            np.save(folder / name, np.full(shape, 32 / 255, np.float32))  # which is read as the letter a
        np.savez(folder / "c.npz", one=np.full(shape, 32 / 255, np.float32))
        Image.fromarray(np.full(shape, 32, np.uint8)).save(folder / "b.png")
        draw_page(folder / "page/p", ("ab", "ba"))
        CharacterModel.fit(["b"]).save(folder / "lm.arpa")
    return place


def check(place: Path, combination: tuple[str, str, str | None, str | None, list[str]]) -> str:
    """Call `mdlstm infer` in a fresh folder, and look at what it has done."""
    model, source, target, form, options = combination
    with TemporaryDirectory(dir=place) as temporary, pytest.MonkeyPatch.context() as patch:
        folder, runs = Path(temporary) / "x", []
        shutil.copytree(place / ("colours" if model == "tiled segment" else "grey"), folder)
        before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
        path, real_run = place / model, LocalRunner.run
        if not path.exists():
            path.write_text(str(MODELS[model](place / f"{model}.onnx")))
        patch.setattr(
            LocalRunner, "run", lambda *args, **more: (runs.append(1), real_run(*args, **more))[1]
        )
        arguments = [source, "-m", path.read_text(), "--device", "cpu"]
        arguments += [*(("-o", target) if target else ()), *(("--format", form) if form else ())]
        arguments += [word for option in options for word in (option, *OPTIONS[option])]
        call = partial(mdlstm, "infer", *arguments, cwd=folder, stdin=(folder / "a.npy").read_bytes())
        done = call()
        new = [path for path in folder.rglob("*") if path.is_file() and path not in before]
        assert all(path.read_bytes() == data for path, data in before.items())
        if done.code == 2:
            assert (done.out, new, runs) == ("", [], []), done.err
            assert "Traceback" not in done.err and done.err.splitlines()[-1].startswith("error: ")
            return "refused"
        assert done.code == 0, done.err
        results = [
            path.parent if path.name == "zarr.json" else path for path in new if path.parent.name != "0"
        ]
        values = [(form or path.suffix[1:], read(form or path.suffix[1:], path)) for path in results]
        if "--json" in options:
            report = json.loads(done.out)  # and nothing else is on stdout
            assert report["done"] == len(report["files"]) == 1 + (source == "in")
            if not values:
                values = [("json", [answer for file in report["files"] for answer in file["answers"]])]
        elif done.out.startswith(("\ufffdNUMPY", "PK", "\ufffdPNG")):
            assert not values and "json" not in done.out
            return "array on stdout"
        elif done.out:
            (folder / "stdout").write_text(done.out, encoding="utf-8")
            values.append((form or "txt", read(form or "txt", folder / "stdout")))
        assert values, "nothing came"
        for each, value in values:
            check_options(model, each, value, options, source)
        again = call()
        if "--skip-existing" in options:
            assert again.code == 0 and "nothing to do" in again.err
        else:
            assert again.code == (2 if new and "--force" not in options else 0), again.err
        return "done"


def check_options(model: str, form: str, value: Any, options: list[str], source: str) -> None:
    """Check that each option shows in a result."""
    kind = model.removeprefix("tiled ")
    is_answer = form in LINES and (kind in ANSWERING or source == "page/p.xml")
    assert not is_answer or value
    if "--top" in options:
        found = (
            "label_2" in value[0]
            if form == "csv"
            else value[0]["probabilities"]
            if form == "json"
            else value[0]
        )
        assert found if form == "csv" else len(found) >= (2 if form == "json" else 4)
    if "--probabilities" in options and is_answer and kind == "classify":
        assert "probability_<b>" in value[0] if form == "csv" else len(value[0]["probabilities"]) == 3
    elif "--probabilities" in options and is_answer:
        confidences = [row[-1] if isinstance(row, list) else row["confidence"] for row in value]
        assert all(0 < float(confidence) <= 1 for confidence in confidences)
    elif "--probabilities" in options and form != "xml":
        for array in value.values() if isinstance(value, dict) else [value]:
            np.testing.assert_allclose(np.asarray(array, np.float64).sum(-1), 1, atol=1e-5)
    if kind == "transcribe" and is_answer and source != "page/p.xml":
        words = value[0] if isinstance(value[0], list) else value[0].values()
        assert ("b" if "--lm" in options else "a") in words
    if kind.startswith("two") and form == "npz":  # several outputs are numbers
        assert all(array.dtype == np.float32 for array in value.values())
    if form == "xml":
        assert len(value) > 0 and all(word.get("WC") for word in value)


def read(form: str, path: Path) -> Any:
    """The content of a result, which must be one document of the format."""
    if form == "zarr":
        return pytest.importorskip("zarr").open_array(str(path))[:]
    file = io.BytesIO(path.read_bytes())
    text = file.getvalue().decode(errors="replace")
    if form in ("txt", "tsv"):
        return [line.split("\t") for line in text.splitlines()]
    if form == "csv":
        return [*csv.DictReader(io.StringIO(text))] or [*csv.reader(io.StringIO(text))]
    if form == "xml":
        return [each for each in ET.fromstring(text).iter() if each.tag.endswith("String")]
    if form == "tif":
        return pytest.importorskip("tifffile").imread(file)
    value = {"json": json.load, "png": Image.open, "npy": np.load, "npz": np.load}[form](file)
    assert form != "npy" or not file.read()
    return dict(value) if form == "npz" else value


@pytest.mark.parametrize("form", ["scan", "tiles"])
@pytest.mark.parametrize("kind", ["grid", "classify", "segment", "tag", "transcribe"])
def test_formats_that_a_refusal_names_are_taken(kind: str, form: str) -> None:
    window = (1, 1) if kind in ("grid", "segment") else None
    classes = () if kind == "grid" else (*"abc",)
    metadata = Metadata("0", None, form, "N H W C", 1, 3, window=window, kind=kind, classes=classes)
    of_documents = {option.name for option in kind_named(kind).options if option.of_documents}
    taken = kind_named(kind).takes.keys() - of_documents
    for options in ({}, *({name: 1} for name in taken)):

        def check(each: Any, options: Any = options) -> None:
            check_jobs(metadata, Path("m"), [Job("x.npy", f"x.out.{each}", each)], options)

        for each in FORMATS:
            reason = ""
            try:
                check(each)
            except InputError as error:
                reason = str(error)
            if reason:
                words = re.search("(?:shows in|whose results) ([a-z, ]+?)(?: can hold)?, got", reason)
                assert words, reason
                for named in words[1].split(", "):
                    check(named)


@pytest.mark.parametrize(
    ("count", "models"),
    [
        (60, [name for name in MODELS if "tiled" not in name]),
        pytest.param(400, list(MODELS), marks=pytest.mark.slow),
    ],
    ids=["quick", "slow"],
)
def test_each_combination_is_refused_before_a_run_or_done_with_effect(
    count: int, models: Sequence[str], place: Path
) -> None:
    @settings(max_examples=count)
    @given(combination=combinations(models))
    def check_each(combination: Any) -> None:
        check(place, combination)

    check_each()
