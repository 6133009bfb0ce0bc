"""The kind `density`: the probability of a sample. Networks of this kind also draw samples.

kind            the questions of a kind of task, answered
sampling        drawing images with the network of a run
contact_sheet   pictures of drawn images

The names below are loaded when they are first used: importing this package does not import torch.
"""

from typing import TYPE_CHECKING

from mdlstm_tk._util.lazy import lazy_names

if TYPE_CHECKING:
    from mdlstm_tk.density.contact_sheet import draw_samples as draw_samples
    from mdlstm_tk.density.sampling import draw_images as draw_images
    from mdlstm_tk.density.sampling import sample_run as sample_run

__all__, __getattr__, __dir__ = lazy_names(
    __name__,
    {"contact_sheet": ("draw_samples",), "sampling": ("draw_images", "sample_run")},
    extra="train",
)
