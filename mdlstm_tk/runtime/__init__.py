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

Lines of text, with confidences and places, by a search that follows a language model:

>>> from mdlstm_tk.runtime import CharacterModel
>>> lm = CharacterModel.load("fr.arpa.gz")
>>> for line in Session("lines.onnx").transcribe(images, beam=16, lm=lm):
...     print(line.text, line.confidence)

Grids of any size, tile by tile:

>>> from mdlstm_tk.runtime import TiledSession
>>> y = TiledSession("model.tiles")(x, tile=512)

Lines of pages in ALTO and PAGE XML:

>>> from mdlstm_tk.runtime import cut_line, read_page, write_page
>>> page = read_page("0001.xml")

Files and folders, as `mdlstm infer` runs them:

>>> from mdlstm_tk.runtime import infer_paths
>>> for result in infer_paths(["scans/"], "model-8x8.onnx", "results/").results:
...     print(result.job.source, result.error or "ok")
"""

from typing import TYPE_CHECKING

from mdlstm_tk._util.lazy import lazy_names

if TYPE_CHECKING:
    from mdlstm_tk.runtime.answers import Answer as Answer
    from mdlstm_tk.runtime.answers import decode as decode
    from mdlstm_tk.runtime.batching import Result as Result
    from mdlstm_tk.runtime.character_model import CharacterModel as CharacterModel
    from mdlstm_tk.runtime.ctc import Character as Character
    from mdlstm_tk.runtime.ctc import Transcription as Transcription
    from mdlstm_tk.runtime.decoding import Decoding as Decoding
    from mdlstm_tk.runtime.description import describe_model as describe_model
    from mdlstm_tk.runtime.inference import Inference as Inference
    from mdlstm_tk.runtime.inference import infer_paths as infer_paths
    from mdlstm_tk.runtime.io.npy import load_array as load_array
    from mdlstm_tk.runtime.io.npy import save_array as save_array
    from mdlstm_tk.runtime.io.readers import load_image as load_image
    from mdlstm_tk.runtime.line_cutting import cut_line as cut_line
    from mdlstm_tk.runtime.metadata import Metadata as Metadata
    from mdlstm_tk.runtime.pages import read_page as read_page
    from mdlstm_tk.runtime.pages import write_page as write_page
    from mdlstm_tk.runtime.session import Session as Session
    from mdlstm_tk.runtime.tiles.session import TiledSession as TiledSession

# Each name is imported when it is first used, as `mdlstm infer` needs few of the modules.
__all__, __getattr__, __dir__ = lazy_names(
    __name__,
    {
        "answers": ("Answer", "decode"),
        "batching": ("Result",),
        "character_model": ("CharacterModel",),
        "ctc": ("Character", "Transcription"),
        "decoding": ("Decoding",),
        "description": ("describe_model",),
        "inference": ("Inference", "infer_paths"),
        "io.npy": ("load_array", "save_array"),
        "io.readers": ("load_image",),
        "line_cutting": ("cut_line",),
        "metadata": ("Metadata",),
        "pages": ("read_page", "write_page"),
        "session": ("Session",),
        "tiles.session": ("TiledSession",),
    },
)
