"""The words that arguments take; the help of the command line lists them, so this imports nothing heavy."""

from typing import Literal

Form = Literal["unrolled", "scan", "tiles"]
Dtype = Literal["float32", "float16"]
Engine = Literal["local", "ray"]
Precision = Literal["float64", "float32", "mixed"]
