"""Networks built from the layer, by name.

    >>> from mdlstm_tk.models import create
    >>> net = create("md", channels=1, outputs=1, hidden=16, directions="all")

Register your own network in a file of yours:

    from mdlstm_tk.models import register

    @register("deep")
    class Deep(torch.nn.Module):
        def __init__(self, channels, outputs, *, hidden=16): ...

and train it with `mdlstm train --model my_file.py:deep`.

    registry    networks by name
    grids       networks that predict numbers at every position
    heads       networks that classify, segment and transcribe, and a convolutional baseline
    density     what networks have in common that give the probability of an image, and draw images
    pixel       the multi-dimensional LSTM as such a network
    density_rivals  networks to compare it with
    normalized  a wrapper that standardises inputs and outputs
    blocks      what the networks are composed of
    initial     initial weights
    hub         saving and loading in the format of the Hugging Face Hub
"""

from mdlstm_tk.errors import imports_of

# Networks are listed in the order in which they are imported here.
# isort: off
with imports_of("train"):
    from mdlstm_tk.models.grids import GridNet, HorizontalNet, MDNet, RasterNet, SnakeNet
    from mdlstm_tk.models.heads import Classifier, ConvNet, Segmenter, TextRecognizer
    from mdlstm_tk.models.density import DensityNet
    from mdlstm_tk.models.pixel import PixelNet
    from mdlstm_tk.models.density_rivals import HorizontalDensity, PixelCNN, RowDensity, SnakeDensity
    from mdlstm_tk.models.normalized import Normalized
    from mdlstm_tk.models.registry import create, model_names, model_options, register
# isort: on

__all__ = [
    "Classifier",
    "ConvNet",
    "DensityNet",
    "GridNet",
    "HorizontalDensity",
    "HorizontalNet",
    "MDNet",
    "Normalized",
    "PixelCNN",
    "PixelNet",
    "RasterNet",
    "RowDensity",
    "Segmenter",
    "SnakeDensity",
    "SnakeNet",
    "TextRecognizer",
    "create",
    "model_names",
    "model_options",
    "register",
]
