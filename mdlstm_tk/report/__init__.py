"""A run as one web page that needs nothing else: what it is, how well it does, how fast its exports are.

Importing this package does not import torch; `mdlstm sample` draws contact sheets without it.
"""

from typing import TYPE_CHECKING, Any

from mdlstm_tk.errors import imports_of

if TYPE_CHECKING:
    from mdlstm_tk.report.page import render_report as render_report
    from mdlstm_tk.report.page import write_report as write_report

__all__ = ["render_report", "write_report"]


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module 'mdlstm_tk.report' has no attribute {name!r}")
    with imports_of("train"):
        from mdlstm_tk.report import page

        return getattr(page, name)


def __dir__() -> list[str]:
    return sorted(__all__)
