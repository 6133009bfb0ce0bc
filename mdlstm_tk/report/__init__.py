"""Pictures of runs, and a run as one web page: what it is, how well it does, how fast its exports are.

Importing this package does not import torch; `mdlstm sample` draws contact sheets without it.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from mdlstm_tk.errors import imports_of

if TYPE_CHECKING:
    from mdlstm_tk.report.page import render_report as render_report
    from mdlstm_tk.report.page import write_report as write_report
    from mdlstm_tk.report.run_pictures import draw_comparison as draw_comparison
    from mdlstm_tk.report.run_pictures import draw_run as draw_run

__all__ = ["draw_comparison", "draw_run", "render_report", "write_report"]


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module 'mdlstm_tk.report' has no attribute {name!r}")
    with imports_of("train"):
        module = import_module(f"mdlstm_tk.report.{'run_pictures' if name.startswith('draw_') else 'page'}")
    return getattr(module, name)
