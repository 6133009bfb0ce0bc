"""The code in docs/exporting.md runs, and prints what the page says."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from helpers.checkout import ROOT
from helpers.documents import run_python_blocks


@pytest.mark.slow
def test_the_page_on_exporting(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    assert run_python_blocks(ROOT / "docs/exporting.md") >= 8
