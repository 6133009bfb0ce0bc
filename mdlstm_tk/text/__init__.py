"""Texts: the kind `transcribe`, whose models read one text from each image of a line, and the kind
`baselines`, whose models find the lines of pages.

>>> from mdlstm_tk.text import CharacterModel, cut_line, read_page, write_page
>>> page = read_page("0001.xml")

transcribe        the kind `transcribe`, and `read_lines`
pages             ALTO and PAGE XML, with page_geometry, markup and line_cutting
page_inference    pages as inputs
ctc, character_model   texts from outputs, and language models
networks, digit_strings   the networks and the built-in task
transcribe_training, page_folders, distortion, calibration   what training needs
measures          the report of a run on its texts
baselines         the kind `baselines`
line_finding, polylines, line_order, outlines   lines from outputs
found_pages, overlay   pages whose lines are found: as XML, and drawn
baseline_network, baseline_maps   what training needs

The names below are loaded when they are first used: importing this package imports neither NumPy nor torch.
"""

from typing import TYPE_CHECKING

from mdlstm_tk._util.lazy import lazy_names

if TYPE_CHECKING:
    from mdlstm_tk.text.baseline_network import LineFinder as LineFinder
    from mdlstm_tk.text.character_model import CharacterModel as CharacterModel
    from mdlstm_tk.text.ctc import Character as Character
    from mdlstm_tk.text.ctc import Decoding as Decoding
    from mdlstm_tk.text.ctc import ReadLine as ReadLine
    from mdlstm_tk.text.digit_strings import DigitStrings as DigitStrings
    from mdlstm_tk.text.found_pages import find_lines as find_lines
    from mdlstm_tk.text.line_cutting import cut_line as cut_line
    from mdlstm_tk.text.networks import LineRecognizer as LineRecognizer
    from mdlstm_tk.text.networks import TextRecognizer as TextRecognizer
    from mdlstm_tk.text.page_inference import read_pages as read_pages
    from mdlstm_tk.text.pages import read_page as read_page
    from mdlstm_tk.text.pages import write_page as write_page
    from mdlstm_tk.text.transcribe import read_lines as read_lines

__all__, __getattr__, __dir__ = lazy_names(
    __name__,
    {
        "baseline_network": ("LineFinder",),
        "character_model": ("CharacterModel",),
        "ctc": ("Character", "Decoding", "ReadLine"),
        "digit_strings": ("DigitStrings",),
        "found_pages": ("find_lines",),
        "line_cutting": ("cut_line",),
        "networks": ("LineRecognizer", "TextRecognizer"),
        "page_inference": ("read_pages",),
        "pages": ("read_page", "write_page"),
        "transcribe": ("read_lines",),
    },
    extra="train",
)
