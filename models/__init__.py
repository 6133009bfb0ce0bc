"""Networks built from the layer, by name.

    >>> from mdlstm_tk.models import create
    >>> net = create("md", channels=1, outputs=1, hidden=16, directions="all")

Your own network joins the registry from your own file:

    from mdlstm_tk.models import register

    @register("deep")
    class Deep(torch.nn.Module):
        def __init__(self, channels, outputs, *, hidden=16): ...

and `mdlstm train --model my_file.py:deep` trains it.
"""

from mdlstm_tk.models.grids import GridNet, HorizontalNet, MDNet, RasterNet, SnakeNet
from mdlstm_tk.models.heads import Classifier, ConvNet, Normalized, Recogniser, Segmenter
from mdlstm_tk.models.registry import create, names, options_of, register

__all__ = [
    "Classifier",
    "ConvNet",
    "GridNet",
    "HorizontalNet",
    "MDNet",
    "Normalized",
    "RasterNet",
    "Recogniser",
    "Segmenter",
    "SnakeNet",
    "create",
    "names",
    "options_of",
    "register",
]
