"""The room of densities: the kind `density`, the probability of a sample, and all that goes with it.

kind       the kind `density`
network    the base of networks that give the probability of an image, and draw images
pixel      the multi-dimensional LSTM as such a network
digits     the built-in tasks
sampling   drawing images with the network of a run
report     the part of a run's report

The names below are loaded when they are first used: importing this package does not import torch.
"""

from typing import TYPE_CHECKING

from mdlstm_tk._util.lazy import lazy_names

if TYPE_CHECKING:
    from mdlstm_tk.density.digits import DigitsDensity as DigitsDensity
    from mdlstm_tk.density.network import DensityNet as DensityNet
    from mdlstm_tk.density.pixel import PixelNet as PixelNet
    from mdlstm_tk.density.sampling import sample_run as sample_run

__all__, __getattr__, __dir__ = lazy_names(
    __name__,
    {
        "digits": ("DigitsDensity",),
        "network": ("DensityNet",),
        "pixel": ("PixelNet",),
        "sampling": ("sample_run",),
    },
    extra="train",
)
