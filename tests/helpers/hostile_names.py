"""Names that would forge output if they were printed, and calls of `mdlstm` that look for it."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from onnx import TensorProto, helper

from helpers.command import Result
from helpers.crafted_models import crafted, info, node, tensor
from mdlstm_tk._util.text import is_plain_text
from mdlstm_tk.cli import main
from mdlstm_tk.runtime import Metadata

NAMES = [
    *("\x1b[2J\x1b]0;forged\x07", "a\nforged: line", "a\r\nforged", "a\tforged", "\x9b2J", "\x7f"),
    *(
        "\u202egpj",
        "\u2028forged",
        os.fsdecode(b"caf\xe9"),
        "\\x1b",
        "a\\",
        "[bold]b[",
        "<script>&amp;",
        "{0}%s",
    ),
    *("$\\frac$", "'\"`$(id)", "=1+1", "-x", "#", " "),
]
TAG = "d[/y]"  # Rich read the folder's end as the end of a style
EVIL = "e\x1b[2J\nforged\t$\\frac$<script>'\"\u202e"  # as the name of a folder
CLASSES = (
    "$\\frac$",
    "<script>alert(1)</script>",
    "[/y]",
    "=1+1",
    "a,\"b'",
    "-2",
    "\\x1b",
    "file",
    "label",
)


class Command:
    """Calls `mdlstm` in this process, and checks that nothing on stderr is forged."""

    def __init__(self, capfd: pytest.CaptureFixture[str]) -> None:
        self.capfd = capfd

    def __call__(self, *arguments: object) -> Result:
        self.capfd.readouterr()
        with pytest.raises(SystemExit) as ended:
            main(list(map(str, arguments)))
        captured = self.capfd.readouterr()
        check_readable(captured.err)
        return Result(int(ended.value.code or 0), captured.out, captured.err)


def check_readable(text: str) -> None:
    assert "Traceback" not in text
    for line in text.split("\n"):
        assert is_plain_text(line), ascii(line)
        assert not line.startswith("forged"), text


def write_classifier(path: Path) -> Path:
    """A model that returns the first nine of sixteen positions as the scores of `CLASSES`."""
    constants = {"shape": (-1, 16), "starts": (0,), "ends": (len(CLASSES),), "axes": (1,)}
    tensors = [tensor(name, values) for name, values in constants.items()]
    nodes = [node("Reshape", "x shape", "flat"), node("Slice", "flat starts ends axes", "y")]
    model = crafted(nodes, tensors)
    model.graph.input[0].CopyFrom(info("x", TensorProto.FLOAT, (None, 4, 4, 1)))
    model.graph.output[0].CopyFrom(info("y", TensorProto.FLOAT, (None, len(CLASSES))))
    metadata = Metadata(
        *("0", (4, 4), "unrolled", "N H W C", 1, len(CLASSES)),
        window=None,
        kind="classify",
        classes=CLASSES,
    )
    helper.set_model_props(model, metadata.to_props())
    path.write_bytes(model.SerializeToString())
    return path
