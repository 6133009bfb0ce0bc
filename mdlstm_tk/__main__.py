"""`python -m mdlstm_tk` is `mdlstm`."""

import os
import sys
from contextlib import suppress
from pathlib import Path

# Python lets -m import modules from the current folder, which may hold a stranger's torch.py. It stays only
# if this package itself lies there.
with suppress(OSError):  # the folder was removed, and Python did not add it
    folder = os.getcwd()
    package_parent = Path(__file__).resolve().parents[1]
    if not sys.flags.safe_path and sys.path[0] == folder and package_parent != Path(folder):
        del sys.path[0]

from mdlstm_tk.cli.app import main

main()
