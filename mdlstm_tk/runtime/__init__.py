"""Running exported models: NumPy and ONNX Runtime, nothing else. Torch and onnx are never imported.

>>> from mdlstm_tk.runtime import Session
>>> session = Session("model-8x8.onnx")
>>> y = session(x)                          # x (8, 8), (8, 8, C) or (N, 8, 8, C)
"""

from mdlstm_tk.runtime.io.arrays import load_array, save_array
from mdlstm_tk.runtime.metadata import Metadata
from mdlstm_tk.runtime.session import Session

__all__ = ["Metadata", "Session", "load_array", "save_array"]
