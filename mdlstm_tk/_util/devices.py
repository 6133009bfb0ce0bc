"""Names of devices, which imports nothing heavy."""

from __future__ import annotations

import re

from mdlstm_tk.errors import InputError


def parse_device(text: str) -> tuple[str, int]:
    """Parse the name of a device: "cuda:1" is ("cuda", 1), and "auto" is ("auto", 0).

    Raises:
        InputError: it is another text.
    """
    match = re.fullmatch(r"(auto|cpu|cuda)|cuda:(0|[1-9][0-9]{0,2})", text)
    if match is None:
        raise InputError(f"device must be auto, cpu, cuda or cuda:N, got {text!r}")
    return match[1] or "cuda", int(match[2] or 0)
