"""The files that a run was trained on give `mdlstm infer` what they give torch in training."""

from __future__ import annotations

import csv
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from helpers.command import mdlstm
from helpers.file_types import ARRAY_TYPES, IMAGE_TYPES, MASK_VALUES, Data, write_data
from PIL import Image

from mdlstm_tk._util.text import text_of_field
from mdlstm_tk.data.task import collate
from mdlstm_tk.export import export_run
from mdlstm_tk.kinds import kind_names
from mdlstm_tk.runtime.io import IMAGE_SUFFIXES
from mdlstm_tk.text.measures import predicted_texts
from mdlstm_tk.training import Run, default_config, load_checkpoint, make_task, new_job, predict, train

TOLERANCE = 1e-5
QUICK = {"steps": 10, "hidden": 8, "lr": 0.02, "warmup": 5, "batch_size": 8, "average": 0.0}


class Trial(NamedTuple):
    """A kind of task, the types of its files, the files of each, and settings of the training."""

    kind: str
    file_types: Sequence[str]
    samples: int = 2
    settings: Mapping[str, Any] = MappingProxyType({})


TRIALS = {
    # Samples of baselines are pages with their XML: tests/text/test_baselines.py has them.
    **{kind: Trial(kind, tuple(IMAGE_TYPES)) for kind in kind_names() if kind != "baselines"},
    # Integers of 32 bits are not scaled, and a density model takes values in [0, 1].
    "density": Trial("density", tuple(name for name in IMAGE_TYPES if name != "TIFF 32 bit")),
    "segment, resized": Trial("segment", tuple(IMAGE_TYPES), settings={"resize": "12x20"}),
    "grid, arrays": Trial("grid", tuple(ARRAY_TYPES), samples=8),
    "classify, arrays": Trial("classify", tuple(ARRAY_TYPES), samples=8),
}


class Sample(NamedTuple):
    """Outputs of a network, and the label or text, or the mask in the values of the training masks."""

    outputs: np.ndarray[Any, Any]
    answer: Any


def torch_samples(run: Run) -> Iterator[tuple[str, Sample]]:
    """The results of the run's network in torch for each sample that training reads, by its name."""
    checkpoint = load_checkpoint(run.checkpoint)
    network, spec = checkpoint.network().eval(), checkpoint.spec
    for samples in make_task(checkpoint.config).sets.values():
        for k, raw in enumerate(samples.samples):
            with torch.no_grad():
                y = predict(network, collate(spec.kind, [samples[k]]), torch.device("cpu")).numpy()
            answer: Any = None
            if spec.kind == "classify":
                answer = spec.classes[int(y[0].argmax())]
            elif spec.kind == "transcribe":
                (answer,) = predicted_texts(y, spec)
            elif spec.kind == "segment":
                answer = np.asarray(MASK_VALUES)[y[0].argmax(-1)]
            yield raw.name, Sample(y[0], answer)


def inferred_samples(kind: str, data: Data, model: Path, folder: Path) -> dict[tuple[Path, str], Sample]:
    """What `mdlstm infer` writes for each sample that it can read, by file and the sample's name."""
    paths = [path for _, path, _ in data.files]
    mdlstm("infer", *paths, "-m", model, "-q", "--format", "npz", "-o", folder / "outputs")
    answers: dict[tuple[Path, str], Any] = {}
    if kind == "segment":
        mdlstm("infer", *paths, "-m", model, "-q", "-o", folder / "masks")
        for path in paths:
            mask = folder / "masks" / f"{path.stem}.out.png"
            if mask.exists():
                answers[path, "y"] = np.asarray(Image.open(mask))
    elif kind != "grid":
        mdlstm("infer", *paths, "-m", model, "-q", "-o", folder / "answers.csv")
        with (folder / "answers.csv").open(encoding="utf-8", newline="") as file:
            for row in csv.DictReader(file):
                key = Path(text_of_field(row["file"])), text_of_field(row["array"]) or "y"
                answers[key] = row.get("label", row.get("text"))
    results = {}
    for path in paths:
        result = folder / "outputs" / f"{path.stem}.out.npz"
        if result.exists():
            with np.load(result) as outputs:
                results |= {
                    (path, name): Sample(y, answers.get((path, name))) for name, y in outputs.items()
                }
    return results


def agree(trained: Sample, inferred: Sample | None) -> bool:
    if inferred is None:
        return False
    difference = np.abs(trained.outputs - inferred.outputs.reshape(trained.outputs.shape)).max()
    return bool(difference <= TOLERANCE) and np.array_equal(trained.answer, inferred.answer)


@pytest.mark.slow
@pytest.mark.parametrize("name", TRIALS)
def test_infer_gives_what_torch_gives_for_every_file(name: str, tmp_path: Path) -> None:
    kind, file_types, count, settings = TRIALS[name]
    data, folder = write_data(kind, tmp_path / "data", file_types, count), tmp_path / "run"
    config = default_config(kind, str(data.path)).updated({**QUICK, **settings}, "here")
    train(new_job(config, folder))
    model = export_run(folder, form="scan").path
    expected, results = dict(torch_samples(Run(folder))), inferred_samples(kind, data, model, tmp_path)
    wrong = [
        (file_type, path.name, sample)
        for file_type, path, samples in data.files
        for array, sample in samples.items()
        if not agree(expected[sample], results.get((path, array)))
    ]
    assert wrong == []
    assert {file_type for file_type, _, _ in data.files} - {"npz"} == set(file_types)


def test_files_that_differ_are_found() -> None:
    good = Sample(np.ones((2, 2)), "a")
    assert agree(good, Sample(np.ones((2, 2, 1)) + 1e-6, "a"))
    for outputs, answer in (
        (np.ones((2, 2)), "b"),
        (np.full((2, 2), 1.1), "a"),
        (good.outputs * np.nan, "a"),
    ):
        assert not agree(good, Sample(outputs, answer))
    assert not agree(good, None)


def test_the_types_have_every_suffix(tmp_path: Path) -> None:
    data = write_data("classify", tmp_path, list(IMAGE_TYPES), 1)
    assert {path.suffix.lower() for _, path, _ in data.files} == set(IMAGE_SUFFIXES)
