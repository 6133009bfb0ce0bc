"""Run exported models with NumPy and ONNX Runtime alone. Neither torch nor onnx is ever imported.

Arrays in memory:

>>> from mdlstm_tk.runtime import Session
>>> session = Session("model-8x8.onnx")
>>> y = session(x)                          # x (8, 8), (8, 8, C) or (N, 8, 8, C)

Images, prepared as the model needs them:

>>> from mdlstm_tk.runtime import load_image
>>> y = session(load_image("photo.jpg", session.metadata))

Labels with probabilities, and other answers, where the model is of such a kind:

>>> from mdlstm_tk.runtime import decode
>>> answers = decode(y, session.metadata, top=3)

Lines of text, with confidences and places, by a search that follows a language model:

>>> from mdlstm_tk.runtime import CharacterModel
>>> lm = CharacterModel.load("fr.arpa.gz")
>>> for line in Session("lines.onnx").transcribe(images, beam=16, lm=lm):
...     print(line.text, line.confidence)

Grids of any size, tile by tile:

>>> from mdlstm_tk.runtime import TiledSession
>>> y = TiledSession("model.tiles")(x, tile=512)

Files and folders, as `mdlstm infer` runs them:

>>> from mdlstm_tk.runtime import infer_paths
>>> for result in infer_paths(["scans/"], "model-8x8.onnx", "results/").results:
...     print(result.job.source, result.error or "ok")
"""

from typing import TYPE_CHECKING, Any

from mdlstm_tk._util.lazy import lazy_names
from mdlstm_tk.kinds.rooms import load, of_rooms

if TYPE_CHECKING:
    from mdlstm_tk.runtime.answers import Answer as Answer
    from mdlstm_tk.runtime.answers import decode as decode
    from mdlstm_tk.runtime.batching import Result as Result
    from mdlstm_tk.runtime.description import describe_model as describe_model
    from mdlstm_tk.runtime.inference import Inference as Inference
    from mdlstm_tk.runtime.inference import infer_paths as infer_paths
    from mdlstm_tk.runtime.io.npy import load_array as load_array
    from mdlstm_tk.runtime.io.npy import save_array as save_array
    from mdlstm_tk.runtime.io.readers import load_image as load_image
    from mdlstm_tk.runtime.metadata import Metadata as Metadata
    from mdlstm_tk.runtime.session import Session as Session
    from mdlstm_tk.runtime.tiles.session import TiledSession as TiledSession
    from mdlstm_tk.text import CharacterModel as CharacterModel

# Each name is imported when it is first used, as `mdlstm infer` needs few of the modules.
_names, _load, _ = lazy_names(
    __name__,
    {
        "answers": ("Answer", "decode"),
        "batching": ("Result",),
        "description": ("describe_model",),
        "inference": ("Inference", "infer_paths"),
        "io.npy": ("load_array", "save_array"),
        "io.readers": ("load_image",),
        "metadata": ("Metadata",),
        "session": ("Session",),
        "tiles.session": ("TiledSession",),
    },
)
_of_rooms = of_rooms("runtime_names")
__all__ = sorted([*_names, *_of_rooms])


def __dir__() -> list[str]:
    return __all__


def __getattr__(name: str) -> Any:
    return load(_of_rooms[name]) if name in _of_rooms else _load(name)
