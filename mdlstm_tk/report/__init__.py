"""A run as one web page that needs nothing else: what it is, how well it does, how fast its exports are."""

from mdlstm_tk.errors import imports_of

with imports_of("train"):
    from mdlstm_tk.report.page import render_report, write_report

__all__ = ["render_report", "write_report"]
