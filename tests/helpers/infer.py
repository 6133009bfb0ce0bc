"""Call `mdlstm infer` in this process."""

from __future__ import annotations

from pathlib import Path

import pytest

from helpers.command import Result
from mdlstm_tk.cli import main


class Infer:
    """Calls `mdlstm infer` with a model in this process."""

    def __init__(self, model: Path, capfd: pytest.CaptureFixture[str]) -> None:
        self.model, self.capfd = model, capfd

    def __call__(self, *arguments: object) -> Result:
        self.capfd.readouterr()
        with pytest.raises(SystemExit) as ended:
            main(["infer", *map(str, arguments), "-m", str(self.model), "--device", "cpu"])
        captured = self.capfd.readouterr()
        assert "Traceback" not in captured.err
        assert isinstance(ended.value.code, int)
        return Result(ended.value.code, captured.out, captured.err)
