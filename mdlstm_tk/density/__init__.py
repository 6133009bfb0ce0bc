"""The room of densities: the kind `density`, the probability of a sample, and all that goes with it.

kind            the kind `density`
network         the base of networks that give the probability of an image, and draw images
pixel           the multi-dimensional LSTM as such a network
digits, fashion, ising   the built-in tasks
idx             reading of IDX files
sampling        drawing images with the network of a run
contact_sheet   pictures of drawn images
drawings        the part of a run's report

The names below are loaded when they are first used: importing this package does not import torch.
"""

from typing import TYPE_CHECKING

from mdlstm_tk._util.lazy import lazy_names

if TYPE_CHECKING:
    from mdlstm_tk.density.contact_sheet import draw_samples as draw_samples
    from mdlstm_tk.density.digits import DigitsDensity as DigitsDensity
    from mdlstm_tk.density.fashion import Fashion as Fashion
    from mdlstm_tk.density.idx import read_idx as read_idx
    from mdlstm_tk.density.ising import Ising as Ising
    from mdlstm_tk.density.network import DensityNet as DensityNet
    from mdlstm_tk.density.pixel import PixelNet as PixelNet
    from mdlstm_tk.density.sampling import draw_images as draw_images
    from mdlstm_tk.density.sampling import sample_run as sample_run

__all__, __getattr__, __dir__ = lazy_names(
    __name__,
    {
        "contact_sheet": ("draw_samples",),
        "digits": ("DigitsDensity",),
        "fashion": ("Fashion",),
        "idx": ("read_idx",),
        "ising": ("Ising",),
        "network": ("DensityNet",),
        "pixel": ("PixelNet",),
        "sampling": ("draw_images", "sample_run"),
    },
    extra="train",
)
