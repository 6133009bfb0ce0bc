"""Networks built from the layer, by name, and the register for your own (docs/extending.md).

    >>> net = create("md", channels=1, outputs=1, hidden=16, directions="all")

registry    networks by name
grids       networks that predict numbers at every position
heads       networks that classify and segment
normalized  a wrapper that standardises inputs and outputs
blocks      the parts that networks are composed of

The names below are loaded when they are first used: importing this package does not import torch.
"""

from typing import TYPE_CHECKING

from mdlstm_tk._util.lazy import lazy_names

if TYPE_CHECKING:
    from mdlstm_tk.models.grids import GridNet as GridNet
    from mdlstm_tk.models.grids import HorizontalNet as HorizontalNet
    from mdlstm_tk.models.grids import MDNet as MDNet
    from mdlstm_tk.models.grids import RasterNet as RasterNet
    from mdlstm_tk.models.grids import SnakeNet as SnakeNet
    from mdlstm_tk.models.heads import Classifier as Classifier
    from mdlstm_tk.models.heads import Segmenter as Segmenter
    from mdlstm_tk.models.normalized import Normalized as Normalized
    from mdlstm_tk.models.registry import create as create
    from mdlstm_tk.models.registry import model_names as model_names
    from mdlstm_tk.models.registry import model_options as model_options
    from mdlstm_tk.models.registry import register as register

__all__, __getattr__, __dir__ = lazy_names(
    __name__,
    {
        "grids": ("GridNet", "HorizontalNet", "MDNet", "RasterNet", "SnakeNet"),
        "heads": ("Classifier", "Segmenter"),
        "normalized": ("Normalized",),
        "registry": ("create", "model_names", "model_options", "register"),
    },
    extra="train",
)
