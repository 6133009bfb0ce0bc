"""`python -m mdlstm_tk` is `mdlstm`."""

import os
import sys
from pathlib import Path

# Python lets -m import modules from the current folder, which may hold a stranger's torch.py. It stays only
# if this package itself lies there.
here = os.getcwd()
if not sys.flags.safe_path and sys.path[0] == here and Path(__file__).resolve().parents[1] != Path(here):
    del sys.path[0]

from mdlstm_tk.cli import main  # noqa: E402

main()
