"""Run exported models with NumPy and ONNX Runtime alone. Neither torch nor onnx is ever imported.

>>> session = Session("model-8x8.onnx")
>>> y = session(x)                                       # x (8, 8), (8, 8, C) or (N, 8, 8, C)
>>> y = session(load_image("photo.jpg", session.metadata))
>>> answers = decode(y, session.metadata, top=3)         # rows of labels, masks, …
>>> y = TiledSession("model.tiles", tile=512)(x)         # a grid of any size, tile by tile
>>> for result in infer_paths(["scans/"], "model-8x8.onnx", "results/"): ...

model_check   what a file must be before ONNX Runtime sees it
ort           a graph that ONNX Runtime has loaded, on the CPU or on CUDA
shapes        arrays of users as models take them, and back
session       `Session`: prepare → run in batches → restore
inputs        files as models take them
answers       outputs as answers, and tables of them
infer         `infer_paths`: read → run → decode → write, for any number of files
limits, ray   the same command in a process with limits, or over many processes
tiles         grids of any size
"""

from typing import TYPE_CHECKING

from mdlstm_tk._util.lazy import lazy_names

if TYPE_CHECKING:
    from mdlstm_tk.io.metadata import Metadata as Metadata
    from mdlstm_tk.runtime.answers import decode as decode
    from mdlstm_tk.runtime.infer import Inference as Inference
    from mdlstm_tk.runtime.infer import infer_paths as infer_paths
    from mdlstm_tk.runtime.inputs import load_image as load_image
    from mdlstm_tk.runtime.session import Session as Session
    from mdlstm_tk.runtime.tiles.session import TiledSession as TiledSession

__all__, __getattr__, __dir__ = lazy_names(
    __name__,
    {
        "answers": ("decode",),
        "infer": ("Inference", "infer_paths"),
        "inputs": ("load_image",),
        "session": ("Metadata", "Session"),
        "tiles.session": ("TiledSession",),
    },
)
