"""A recogniser that was trained for some steps on drawn pages, for all tests of texts."""

from __future__ import annotations

import pytest
from helpers.pages import draw_page

from mdlstm_tk.export import export_run
from mdlstm_tk.training import Run, configure, train


@pytest.fixture(scope="session")
def reader(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """The run; its pages are in pages/ beside it, and reader.onnx. Tests must not change them."""
    folder = tmp_path_factory.mktemp("reader")
    for k, texts in enumerate((("ab", "bb a"), ("ba", "a ab"), ("abba", "b"), ("aab", "bab"))):
        draw_page(folder / f"pages/p{k}", texts)
    settings = {"resize": "16x*", "hidden": 4, "batch_size": 4, "warmup": 0, "lr": 0.01, "average": 0.0}
    settings |= {"steps": 60, "evaluate_every": 60, "validation": 0.25, "augment": 0.0, "dropout": 0.0}
    run = Run(folder / "run")
    train(configure(task="transcribe", data=str(folder / "pages"), **settings), run.folder)
    export_run(run, folder / "reader.onnx", form="scan")
    return run
