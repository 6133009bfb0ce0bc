"""Run exported models with NumPy and ONNX Runtime alone. Neither torch nor onnx is ever imported.

Arrays in memory:

>>> from mdlstm_tk.runtime import Session
>>> session = Session("model-8x8.onnx")
>>> y = session(x)                          # x (8, 8), (8, 8, C) or (N, 8, 8, C)

Files and folders, as `mdlstm infer` runs them:

>>> from mdlstm_tk.runtime import infer_paths
>>> for outcome in infer_paths(["scans/"], "model-8x8.onnx", "results/").outcomes:
...     print(outcome.job.source, outcome.error or "ok")
"""

from mdlstm_tk.runtime.batching import Outcome
from mdlstm_tk.runtime.inference import Inference, infer_paths
from mdlstm_tk.runtime.io.arrays import load_array, save_array
from mdlstm_tk.runtime.metadata import Metadata
from mdlstm_tk.runtime.session import Session

__all__ = ["Inference", "Metadata", "Outcome", "Session", "infer_paths", "load_array", "save_array"]
