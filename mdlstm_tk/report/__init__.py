"""Pictures of runs, and a run as one web page: what it is, how well it does, and where it fails.

Importing this package does not import torch.
"""

from typing import TYPE_CHECKING

from mdlstm_tk._util.lazy import lazy_names

if TYPE_CHECKING:
    from mdlstm_tk.report.page import write_report as write_report
    from mdlstm_tk.report.plots import draw_comparison as draw_comparison

__all__, __getattr__, __dir__ = lazy_names(
    __name__, {"page": ("write_report",), "plots": ("draw_comparison",)}, extra="train"
)
