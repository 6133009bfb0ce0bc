"""Pictures of runs, and a run as one web page: what it is, how well it does, how fast its exports are.

Importing this package does not import torch.
"""

from typing import TYPE_CHECKING

from mdlstm_tk._util.lazy import lazy_names

if TYPE_CHECKING:
    from mdlstm_tk.report.page import render_report as render_report
    from mdlstm_tk.report.page import write_report as write_report
    from mdlstm_tk.report.run_pictures import draw_comparison as draw_comparison
    from mdlstm_tk.report.run_pictures import draw_run as draw_run

__all__, __getattr__, __dir__ = lazy_names(
    __name__,
    {
        "page": ("render_report", "write_report"),
        "run_pictures": ("draw_comparison", "draw_run"),
    },
    extra="train",
)
