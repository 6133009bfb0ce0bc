"""Texts: the kind `transcribe`, whose models read one text from each image of a line.

>>> from mdlstm_tk.text import CharacterModel, cut_line, read_page, write_page
>>> page = read_page("0001.xml")

kind, training    the questions of a kind of task, answered for exports and inference, and for training
pages             reading and writing ALTO and PAGE XML, as page_geometry and markup help to
documents         pages as inputs of an inference, which page_inference runs
line_cutting      lines cut out of pages
transcription     texts of images, by ctc and decoding
character_model   the language model
networks          the networks
digit_strings     the built-in task
encoding          the characters of texts, and how texts are encoded
ctc_loss          the loss
measures, reading    errors of texts, and the lines of a split with their readings
calibration       how texts are read, chosen on validation data
page_folders      samples from folders of pages and lines; distortion of lines
report, cuts      readings and cut lines in the report of a run

The names below are loaded when they are first used: importing this package imports neither NumPy nor torch.
"""

from typing import TYPE_CHECKING

from mdlstm_tk._util.lazy import lazy_names

if TYPE_CHECKING:
    from mdlstm_tk.text.character_model import CharacterModel as CharacterModel
    from mdlstm_tk.text.ctc import Character as Character
    from mdlstm_tk.text.ctc import Transcription as Transcription
    from mdlstm_tk.text.decoding import Decoding as Decoding
    from mdlstm_tk.text.digit_strings import DigitStrings as DigitStrings
    from mdlstm_tk.text.line_cutting import cut_line as cut_line
    from mdlstm_tk.text.networks import LineRecognizer as LineRecognizer
    from mdlstm_tk.text.networks import TextRecognizer as TextRecognizer
    from mdlstm_tk.text.pages import read_page as read_page
    from mdlstm_tk.text.pages import write_page as write_page

__all__, __getattr__, __dir__ = lazy_names(
    __name__,
    {
        "character_model": ("CharacterModel",),
        "ctc": ("Character", "Transcription"),
        "decoding": ("Decoding",),
        "digit_strings": ("DigitStrings",),
        "line_cutting": ("cut_line",),
        "networks": ("LineRecognizer", "TextRecognizer"),
        "pages": ("read_page", "write_page"),
    },
    extra="train",
)
