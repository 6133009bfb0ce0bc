"""The command line prints names of files and classes with escapes for control characters."""

from __future__ import annotations

import logging
import os
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers.command import mdlstm
from rich.console import Console

from mdlstm_tk._util.text import is_plain_text
from mdlstm_tk.cli import console
from mdlstm_tk.cli.app import run
from mdlstm_tk.cli.console import detail, error, heading, note, progress, table, verbosity, warn
from mdlstm_tk.cli.options import complete_files
from mdlstm_tk.cli.progress import tile_progress
from mdlstm_tk.report.panels import Panel
from mdlstm_tk.report.plots import draw_curves, draw_panels, svg_curves
from mdlstm_tk.report.terminal_heatmap import show_grids

EVIL = "e\x1b[2J\nforged\t$\\frac$<script>'\"\u202e[/y]"


def check_readable(text: str, count: int) -> None:
    """Every line is plain, and the name is whole each time."""
    assert all(is_plain_text(line) for line in text.split("\n")) and "\nforged" not in text
    assert text.count("e\\x1b[2J\\nforged\\t$\\frac$<script>'\"\\u202e[/y]") == count


def test_messages_tables_progress_and_heat_maps(
    capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(verbosity, "verbose", True)
    for write in (error, note, warn, detail, heading):
        write(EVIL)
    with progress(1) as show:
        show(1, EVIL)
    check_readable(capfd.readouterr().err, 6)
    table([EVIL], [[EVIL]], EVIL)
    show_grids(Console(width=80), {EVIL: np.full((3, 3), np.nan), "b": np.zeros((2, 5))})
    check_readable(capfd.readouterr().out, 4)


def test_quiet_leaves_out_what_the_library_logs(caplog: pytest.LogCaptureFixture) -> None:
    for options in ((), ("-q",), ()):
        run(["doctor", *options])
        logging.getLogger("mdlstm_tk").warning("a cell is compiled")
        assert ("a cell is compiled" in caplog.text) == (not options)
        caplog.clear()


def test_tables_without_colours_are_plain(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")
    for value in ("", "1"):
        monkeypatch.setenv("NO_COLOR", value)
        table(["a"], [["b"]])
        assert ("\33[1m" in capsys.readouterr().out) == (not value)


def test_a_progress_bar(capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(console, "on_terminal", lambda: True)
    console.err.cache_clear()  # its stream is that of an earlier test
    with progress(2) as show:
        show(1, "d[/y]", 70)
    console.err.cache_clear()
    assert "d[/y]  ETA 1:10" in capfd.readouterr().err


def test_the_last_line_of_progress_is_printed_once(capfd: pytest.CaptureFixture[str]) -> None:
    """Several steps may end within the last second of a training with `minutes`."""
    with progress(4) as show:
        for second in (1, 1, 3, 4, 4, 4):
            show(second, "text")
    assert [line.split()[0] for line in capfd.readouterr().err.splitlines()] == ["1/4", "3/4", "4/4"]


def test_redirected_progress_prints_at_least_every_thirty_seconds(
    capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    times = iter([0.0, 10, 29, 30, 45, 61, 62])
    monkeypatch.setattr(console.time, "monotonic", lambda: next(times))
    with progress(1000) as show:
        for step in range(1, 7):
            show(step, "")
    assert capfd.readouterr().err.split() == ["3/1000", "5/1000"]


def test_tiles_are_counted_for_one_file_after_another(capfd: pytest.CaptureFixture[str]) -> None:
    with tile_progress(is_shown=True) as report:
        assert report is not None
        for done in (0, 1, 2, 0, 1, 2):
            report(done, 2)
    lines = capfd.readouterr().err.splitlines()
    assert [line.split()[0] for line in lines] == ["1/2", "2/2"] * 2
    assert all(line.partition("  ETA")[0].endswith("tiles/s") for line in lines)
    with tile_progress(is_shown=False) as report:
        assert report is None


@pytest.mark.parametrize("arguments", [("infer\nforged",), ("infer", EVIL, "-q"), ("infer", "--x\nforged")])
def test_errors_are_one_line_and_a_traceback_is_plain(arguments: tuple[str, ...], tmp_path: Path) -> None:
    done = mdlstm(*arguments, cwd=tmp_path)
    assert done.code == 2 and done.err.count("\n") == 1 and is_plain_text(done.err[:-1])
    done = mdlstm(*arguments, "--debug", cwd=tmp_path)
    assert all(is_plain_text(line) for line in done.err.split("\n")) and "\nforged" not in done.err


def test_memory_that_torch_cannot_get_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mdlstm_tk.installation.check_installation", lambda: torch.empty(10**15))
    done = mdlstm("doctor", "--quiet")
    assert done.code == 1 and re.fullmatch("error: out of memory; .*\n", done.err)


def test_texts_in_pictures(tmp_path: Path) -> None:
    image = np.zeros((2, 3, 3), np.uint8)
    draw_panels(tmp_path / "p.png", EVIL, [Panel(EVIL, image)], 2)
    records = [{"step": k, "loss": 1.0 / k, EVIL: 1.0 / k} for k in (1, 2)]
    draw_curves(tmp_path / "c.png", "$\\frac$", records)
    svg = str(svg_curves(records)[-1])
    assert "<script" not in svg and "$\\frac$" in svg and is_plain_text(re.sub(r"\s", " ", svg))


@pytest.mark.skipif(os.name != "posix", reason="other systems refuse such file names")
def test_files_that_a_shell_would_misread_are_not_completed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("a.npy", "a\n.npy", "b.txt"):
        Path(name).touch()
    Path("d").mkdir()
    assert complete_files(".npy")("") == ["a.npy", "d/"]


def test_a_heat_map_of_the_largest_numbers(capfd: pytest.CaptureFixture[str]) -> None:
    show_grids(Console(width=80), {"y": np.array([[1e308, -1e308]])})
    assert "y  -1e+308 … 1e+308" in capfd.readouterr().out
