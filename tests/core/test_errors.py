"""`mdlstm_tk.errors`: what stands for a package that is missing or broken."""

from __future__ import annotations

from pathlib import Path

import pytest

from mdlstm_tk.errors import MissingExtraError, require


def test_a_package_that_cannot_be_imported_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "broken_package.py").write_text("raise ImportError('no libgomp.so.1\\nmore')")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(MissingExtraError, match=r"'broken_package' .*\(no libgomp\.so\.1\); .*\[cpu\]'$"):
        require("broken_package", "cpu")
