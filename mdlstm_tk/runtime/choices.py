"""The words that arguments take; the help of the command line lists them, so this imports nothing heavy."""

import re
from typing import Literal

from mdlstm_tk.errors import InputError

Form = Literal["unrolled", "scan", "tiles"]
Dtype = Literal["float32", "float16"]
Engine = Literal["local", "ray"]
Precision = Literal["float64", "float32", "mixed"]


def parse_device(text: str) -> tuple[str, int]:
    """Parse the name of a device: "cuda:1" is ("cuda", 1), and "auto" is ("auto", 0).

    Raises:
        InputError: it is another text.
    """
    match = re.fullmatch(r"(auto|cpu|cuda)|cuda:(0|[1-9][0-9]{0,2})", text)
    if match is None:
        raise InputError(f"must be auto, cpu, cuda or cuda:N, got '{text}'")
    return match[1] or "cuda", int(match[2] or 0)
