"""Texts: the kind `transcribe`, whose models read one text from each image of a line, and the kind
`baselines`, whose models find the lines of pages.

>>> from mdlstm_tk.text import CharacterModel, cut_line, read_page, write_page
>>> page = read_page("0001.xml")

read                          photographs or XML → lines → texts → XML
pages, geometry, cutting      ALTO and PAGE XML in and out; chains of points; lines cut out of pages
transcribe, ctc, character_model   the kind and `read_lines`; texts from outputs, and language models
baselines, line_finding, layout    the kind; lines from outputs, with outlines, order and regions
networks, digit_strings       the networks of lines and the built-in task
transcribe_training, baselines_training, folders, distortion, calibration   what training needs
measures                      the report of a run on its texts

The names below are loaded when they are first used: importing this package imports neither NumPy nor torch.
"""

from typing import TYPE_CHECKING

from mdlstm_tk._util.lazy import lazy_names

if TYPE_CHECKING:
    from mdlstm_tk.text.baselines_training import LineFinder as LineFinder
    from mdlstm_tk.text.character_model import CharacterModel as CharacterModel
    from mdlstm_tk.text.ctc import Character as Character
    from mdlstm_tk.text.ctc import Decoding as Decoding
    from mdlstm_tk.text.ctc import ReadLine as ReadLine
    from mdlstm_tk.text.cutting import cut_line as cut_line
    from mdlstm_tk.text.layout import find_lines as find_lines
    from mdlstm_tk.text.networks import LineRecognizer as LineRecognizer
    from mdlstm_tk.text.networks import TextRecognizer as TextRecognizer
    from mdlstm_tk.text.pages import read_page as read_page
    from mdlstm_tk.text.pages import write_page as write_page
    from mdlstm_tk.text.read import read_pages as read_pages
    from mdlstm_tk.text.transcribe import read_lines as read_lines

__all__, __getattr__, __dir__ = lazy_names(
    __name__,
    {
        "baselines_training": ("LineFinder",),
        "character_model": ("CharacterModel",),
        "ctc": ("Character", "Decoding", "ReadLine"),
        "layout": ("find_lines",),
        "cutting": ("cut_line",),
        "networks": ("LineRecognizer", "TextRecognizer"),
        "read": ("read_pages",),
        "pages": ("read_page", "write_page"),
        "transcribe": ("read_lines",),
    },
    extra="train",
)
