"""The scripts in examples/: they run, and do what they say."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from helpers.checkout import ROOT
from matplotlib import font_manager
from PIL import ImageFont

from mdlstm_tk._util.user_code import import_file
from mdlstm_tk.training import configure, make_task

RESULTS: dict[str, tuple[dict[str, Any], Callable[[Any], bool]]] = {  # arguments, and what is expected
    "from_lstm": ({}, lambda difference: difference < 1e-5),
    "own_kind": ({}, lambda error: error < 0.8),  # 1.2 if it predicts the mean
    "training_loop": ({"steps": 60}, lambda error: error < 0.1),  # 0.2 if it predicts the mean
    "two_inputs": ({}, lambda y: [y[name].shape for name in ("map", "answer")] == [(2, 9, 5, 1), (2, 3)]),
    "unet": ({"steps": 80}, lambda wrong: wrong < 0.01),  # 0.016 of the pixels are marked
}


@pytest.mark.slow
@pytest.mark.parametrize("name", RESULTS)
def test_an_example_does_what_it_says(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    arguments, is_right = RESULTS[name]
    result = import_file(ROOT / f"examples/{name}.py").main(**arguments)
    assert is_right(result), result


def test_rendered_lines_can_be_trained_on(tmp_path: Path) -> None:
    font = ImageFont.truetype(font_manager.findfont("DejaVu Sans"), 64)
    example = import_file(ROOT / "examples/render_lines.py")
    written = example.main(["né à Paris", "le \uffffdix huit", "\uffff"], tmp_path, [font], count=6)
    assert {"né", "à", "Paris", "le", "dix", "huit"} == {w for text in written for w in text.split()}
    task = make_task(configure(task="transcribe", data=tmp_path, validation=0.25))
    assert (len(task.names["train"]) + len(task.names["validation"]), task.spec.size[0]) == (6, 64)
    assert task.batch(0, 0, 4).x.std(axis=(1, 2, 3)).min() > 0.02
    assert [f.path for f in example.find_fonts([Path(font.path)], ["né"])] == [font.path]
    assert example.find_fonts([Path(font.path).parent], ["\uffff"]) == []
