"""Run exported models with NumPy and ONNX Runtime alone. Neither torch nor onnx is ever imported.

Arrays in memory:

>>> from mdlstm_tk.runtime import Session
>>> session = Session("model-8x8.onnx")
>>> y = session(x)                          # x (8, 8), (8, 8, C) or (N, 8, 8, C)

Images, prepared as the model needs them:

>>> from mdlstm_tk.runtime import load_image
>>> y = session(load_image("photo.jpg", session.metadata))

Labels with probabilities, texts and masks, where the model is of such a kind:

>>> from mdlstm_tk.runtime import decode
>>> answers = decode(y, session.metadata, top=3)

Grids of any size, tile by tile:

>>> from mdlstm_tk.runtime import TiledSession
>>> y = TiledSession("model.tiles")(x, tile=512)

Files and folders, as `mdlstm infer` runs them:

>>> from mdlstm_tk.runtime import infer_paths
>>> for outcome in infer_paths(["scans/"], "model-8x8.onnx", "results/").outcomes:
...     print(outcome.job.source, outcome.error or "ok")
"""

from mdlstm_tk.runtime.answers import Answer, decode
from mdlstm_tk.runtime.batching import Outcome
from mdlstm_tk.runtime.inference import Inference, infer_paths
from mdlstm_tk.runtime.io.arrays import load_array, save_array
from mdlstm_tk.runtime.io.readers import load_image
from mdlstm_tk.runtime.metadata import Metadata
from mdlstm_tk.runtime.session import Session
from mdlstm_tk.runtime.tiles.session import TiledSession

__all__ = [
    "Answer",
    "Inference",
    "Metadata",
    "Outcome",
    "Session",
    "TiledSession",
    "decode",
    "infer_paths",
    "load_array",
    "load_image",
    "save_array",
]
