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

from mdlstm_tk.models.networks import CellwiseNet, HorizontalNet, MDNet, RasterNet, SnakeNet
from mdlstm_tk.models.readers import Classifier, ConvNet, Recogniser, Scaled, Segmenter
from mdlstm_tk.models.registry import create, names, options_of, register

__all__ = [
    "CellwiseNet",
    "Classifier",
    "ConvNet",
    "HorizontalNet",
    "MDNet",
    "RasterNet",
    "Recogniser",
    "Scaled",
    "Segmenter",
    "SnakeNet",
    "create",
    "names",
    "options_of",
    "register",
]
