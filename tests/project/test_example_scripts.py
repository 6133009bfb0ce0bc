"""The scripts and the notebook in examples/: they run, and do what they say."""

from __future__ import annotations

import json
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType
from typing import Any

import matplotlib as mpl
import numpy as np
import pytest
import torch
from helpers.checkout import ROOT
from helpers.requirements import missing
from matplotlib import font_manager
from PIL import ImageFont

from mdlstm_tk._util.user_code import import_file
from mdlstm_tk.training import configure, make_task

EXAMPLES = ROOT / "examples"
RESULTS: dict[str, tuple[dict[str, Any], Callable[[Any], bool]]] = {  # arguments, and what is expected
    "from_lstm": ({}, lambda difference: difference < 1e-5),
    "own_kind": ({}, lambda error: error < 0.8),  # 1.2 if it predicts the mean
    "hub": ({}, lambda difference: difference == 0),
    "training_loop": ({"steps": 60}, lambda error: error < 0.1),  # 0.2 if it predicts the mean
    "two_inputs": (
        {},
        lambda y: {k: v.shape for k, v in y.items()} == {"map": (2, 9, 5, 1), "answer": (2, 3)},
    ),
    "unet": ({"steps": 80}, lambda wrong: wrong < 0.01),  # 0.016 of the pixels are marked
    "volume": ({"steps": 40}, lambda wrong: wrong < 0.1),  # 0.24 with a threshold
}


@pytest.mark.slow
@pytest.mark.parametrize("name", RESULTS)
def test_an_example_does_what_it_says(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, one_thread: None
) -> None:
    if name == "hub" and find_spec("huggingface_hub") is None:
        missing("huggingface_hub is not installed")
    monkeypatch.chdir(tmp_path)
    arguments, is_right = RESULTS[name]
    result = import_file(EXAMPLES / f"{name}.py").main(**arguments)
    assert is_right(result), result


def test_rendered_lines_can_be_trained_on(tmp_path: Path) -> None:
    font = ImageFont.truetype(font_manager.findfont("DejaVu Sans"), 64)
    example = import_file(EXAMPLES / "render_lines.py")
    written = example.main(["né à Paris", "le \uffffdix huit", "\uffff"], tmp_path, [font], count=6)
    assert {"né", "à", "Paris", "le", "dix", "huit"} == {w for text in written for w in text.split()}
    task = make_task(configure(task="transcribe", data=tmp_path, validation=0.25))
    assert (len(task.names["train"]) + len(task.names["validation"]), task.spec.size[0]) == (6, 64)
    assert task.batch(0, 0, 4).x.std(axis=(1, 2, 3)).min() > 0.02
    assert "\t" not in example.compose(["a\tb  c"], np.random.default_rng(0))  # one column of labels.tsv
    assert [f.path for f in example.find_fonts([Path(font.path)], ["né"])] == [font.path]
    assert example.find_fonts([Path(font.path).parent], ["\uffff"]) == []
    with pytest.raises(ValueError, match="font"):
        example.main(["\uffff"], tmp_path, [font])


@pytest.mark.slow
@pytest.mark.parametrize("path", sorted(EXAMPLES.glob("*.ipynb")), ids=lambda path: path.name)
def test_a_notebook_runs(path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its cells in order, in one namespace, as Jupyter runs them; they use none of its magics."""
    monkeypatch.chdir(tmp_path)
    mpl.use("agg")
    torch.manual_seed(0)
    namespace = ModuleType("__main__").__dict__
    cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
    for number, cell in enumerate(cells):
        if cell["cell_type"] == "code":
            exec(compile("".join(cell["source"]), f"{path}, cell {number}", "exec"), namespace)
    mpl.pyplot.close("all")
    matrix, prediction = namespace["matrix"], namespace["prediction"]
    row, column = np.argwhere(matrix == 1)[1]  # the second one, which can be predicted one column earlier
    assert prediction[row, column - 1] > 0.5
    assert {cell["cell_type"] for cell in cells} == {"code", "markdown"}
