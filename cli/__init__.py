"""The `mdlstm` command. One file a verb; nothing heavy is imported before a verb runs."""

from mdlstm_tk.cli.main import main

__all__ = ["main"]
