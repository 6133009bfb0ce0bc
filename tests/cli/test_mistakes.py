"""Mistakes that people make at the command line: one line that names what is wrong, and the exit code."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from helpers.command import mdlstm
from helpers.small_models import classifier, recogniser, write_model
from PIL import Image

MISTAKES: dict[str, tuple[int, str]] = {  # the command: exit code, and what the line names
    # words
    "nix": (2, "nix"),
    "infer --nix": (2, "--nix"),
    "infer": (2, "FILE"),
    "read page.png": (2, "--model"),
    "train --steps": (2, "--steps"),
    "--import nix.py train": (2, "nix.py"),
    "--import broken.py doctor": (1, "SyntaxError"),
    "--import large.py doctor": (1, "smaller size"),
    "--import stop.py doctor": (130, "interrupted"),
    "--import full.py doctor": (1, "disk: full"),
    # files
    "infer nix.npy -m m.onnx": (2, "nix.npy"),
    "infer -m m.onnx -- -q": (2, "file -q"),
    "infer bad.npy -m m.onnx": (2, "bad.npy"),
    "infer bad.png -m m.onnx": (2, "bad.png"),
    "infer x.npy bad.npy -m m.onnx": (1, "1 of 2"),
    "infer x.npy -m nix.onnx": (2, "nix.onnx"),
    "infer x.npy -m empty": (2, "mdlstm export"),
    "infer x.npy -m m.onnx -o x.npy": (2, "-o"),
    "infer x.npy -m m.onnx -o file/y.npy": (1, "file"),
    "infer photo.png -m r.onnx": (2, "mdlstm read"),
    "read photo.png -m m.onnx": (2, "transcribe"),
    "info nix": (2, "nix"),
    "train --data nix --task classify": (2, "nix"),
    "train --resume nix": (2, "nix"),
    "train -c bad.toml": (2, "bad.toml"),
    "train --init nix --steps 1": (2, "nix"),
    "train --init nix --data classes --task classify": (2, "folder of a run"),
    "train --best-by acuracy -o run": (2, "relevant"),
    "train --resume nix --steps 2 --minutes 1": (2, "nix"),
    # layouts, shapes and sizes
    "infer wide.npy -m m8.onnx": (2, "--size 4x6"),
    "infer cube.npy -m m.onnx": (2, "shape"),
    "infer nan.npy -m m.onnx": (2, "NaN"),
    "infer x.npy -m m.onnx --resize 0": (2, "resize"),
    "export --size 8y8": (2, "size"),
    "train --data classes --task classify": (2, "class"),
    "train --data classes": (2, "--task"),
    "train --data classes --task segment": (2, "images"),
    # settings
    "train --steps 0": (2, "steps"),
    "train --lr -1": (2, "lr"),
    "train --task diagnal": (2, "diagonal"),
    "train --cell stabel": (2, "stable"),
    "train --directions 3": (2, "directions"),
    "train --resume run -o other": (2, "--resume"),
    "train --steps 5 --minutes 1": (2, "minutes"),
    "train --task diagonal --levels 4": (2, "levels"),
    "export -o a.onnx --web page": (2, "--web"),
    "export --form tiles --web page": (2, "tiles"),
    "export --size 8 --size 9 --web page": (2, "one size"),
    "export --web-runtime a.tgz": (2, "--web DIR"),
    "export nix --size 8 --size 9 -o a.onnx": (2, "2 sizes"),
    "infer x.npy -m m.onnx --top 3": (2, "top"),
    "infer x.npy -m m.onnx --batch-size 0": (2, "--batch-size"),
    "infer x.npy -m m.onnx --format zip": (2, "--format"),
    "infer x.npy -m c.onnx -o y.npy": (2, "--format"),
    "infer x.npy -m m.onnx --tile 8": (2, "--form tiles"),
    "infer x.npy -m m.onnx -o - --json": (2, "--json"),
    "infer x.npy -m m.onnx --timeout 3": (2, "--isolated"),
    "infer x.npy -m m.onnx --isolated --device cuda:1": (2, "CPU"),
    "read photo.png -m r.onnx --overlay": (2, "-o"),
    # devices
    "infer x.npy -m m.onnx --device gpu": (2, "cuda:N"),
    "infer x.npy -m m.onnx --device cuda": (4, "--device cpu"),
    "train --device cuda --steps 1": (4, "cuda"),
    "train --device tpu": (2, "device"),
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Models, inputs and things that are wrong."""
    folder = tmp_path_factory.mktemp("mistakes")
    write_model(folder / "m.onnx")
    write_model(folder / "m8.onnx", grid=(8, 8))
    classifier(folder / "c.onnx")
    recogniser(folder / "r.onnx", preprocessing={"channels": 1, "resize": [16, None]})
    arrays = {
        "x": np.eye(4),
        "wide": np.ones((4, 6)),
        "cube": np.ones((4, 6, 7)),
        "nan": np.nan * np.eye(4),
    }
    for name, array in arrays.items():
        np.save(folder / f"{name}.npy", array)
    for name in ("bad.npy", "bad.png", "file"):
        (folder / name).write_bytes(b"nothing")
    (folder / "broken.py").write_text("def")
    (folder / "large.py").write_text("raise MemoryError")
    (folder / "stop.py").write_text("raise KeyboardInterrupt")
    (folder / "full.py").write_text("raise OSError(28, 'full', 'disk')")
    (folder / "bad.toml").write_text("steps = ")
    (folder / "empty").mkdir()
    (folder / "classes" / "cat").mkdir(parents=True)
    Image.new("L", (8, 8)).save(folder / "classes" / "cat" / "a.png")
    Image.new("L", (700, 900)).save(folder / "photo.png")
    return folder


def _times(folder: Path) -> dict[Path, int]:
    """When each file was written, but for what Python caches of files that it imports."""
    files = [path for path in folder.rglob("*") if path.is_file() and path.suffix != ".pyc"]
    return {path: path.stat().st_mtime_ns for path in files}


@pytest.mark.parametrize("command", MISTAKES)
def test_a_mistake_is_one_line_and_writes_nothing(folder: Path, command: str) -> None:
    code, name = MISTAKES[command]
    before = _times(folder)
    done = mdlstm(*command.split(), cwd=folder)
    assert done.code == code, done.err
    last = done.err.splitlines()[-1]
    assert last.startswith("error: ") and name in last, done.err
    assert "Traceback" not in done.err and len(last) < 420
    written = _times(folder)
    for path in written.keys() - before.keys():
        assert path.name == "x.out.npy", path  # of the file beside one that is bad
        path.unlink()
    assert all(written[path] == before[path] for path in before)


def test_debug_prints_the_traceback_and_quiet_only_the_error(folder: Path) -> None:
    done = mdlstm("--debug", "infer", "nix.npy", "-m", "m.onnx", cwd=folder)
    lines = done.err.splitlines()
    assert "Traceback (most recent call last):" in lines and lines[-1].startswith("error: ")
    done = mdlstm("infer", "nix.npy", "-q", "-m", "m.onnx", cwd=folder)
    assert done.err.count("\n") == 1


def test_names_of_strangers_are_printed_without_controls(folder: Path) -> None:
    done = mdlstm("infer", "\x1b[2J.npy", "-m", "m.onnx", cwd=folder)
    assert done.code == 2 and "\x1b" not in done.err and "\\x1b[2J.npy" in done.err
    classifier(folder / "e.onnx", classes=("\x1b[31m", "b\u202e", "c"))
    for words in (("infer", "x.npy", "-m", "e.onnx"), ("info", "e.onnx")):
        done = mdlstm(*words, cwd=folder)
        assert done.code == 0 and not {*done.out} & {"\x1b", "\u202e"}
