"""The exception with which the parts of the model check say why they refuse a model."""

from __future__ import annotations


class Refusal(Exception):  # noqa: N818
    """Why a model is refused. `check_model` puts the name of the model in front of the message."""


def holds(content: str) -> Refusal:
    """The refusal of a model that holds something that no exported model holds."""
    return Refusal(f"holds {content}; expected a model that `mdlstm export` wrote")


def malformed(position: int) -> Refusal:
    """The refusal of bytes that are no protobuf message."""
    return Refusal(f"is not a model that ONNX Runtime can load: it is malformed at byte {position}")


def printable(name: bytes) -> str:
    """A name from the file without terminal escapes, for error messages."""
    return ascii(name[:60].decode(errors="replace"))
