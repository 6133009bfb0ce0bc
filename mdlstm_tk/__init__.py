"""mdlstm-tk: multi-dimensional LSTMs that train in PyTorch and run anywhere under ONNX Runtime.

Importing this package imports neither torch nor onnx: the names below are loaded when they are first used.
The operator `mdlstm::wavefront` is registered with torch by `mdlstm_tk.layer`; import that before you load
a graph that was saved with it.
"""

import os.path
from typing import TYPE_CHECKING

from mdlstm_tk._util.lazy import lazy_names

if TYPE_CHECKING:
    from mdlstm_tk._version import __version__ as __version__
    from mdlstm_tk.cells import Gate as Gate
    from mdlstm_tk.cells import register_cell as register_cell
    from mdlstm_tk.errors import DeviceError as DeviceError
    from mdlstm_tk.errors import InputError as InputError
    from mdlstm_tk.errors import MDLSTMError as MDLSTMError
    from mdlstm_tk.errors import MissingExtraError as MissingExtraError
    from mdlstm_tk.errors import ParityError as ParityError
    from mdlstm_tk.layer import MDLSTM as MDLSTM
    from mdlstm_tk.states import BoundaryState as BoundaryState

# In a checkout mdlstm_tk/models, cli and export are symbolic links to ../models and so on.
if not os.path.isdir(os.path.join(__path__[0], "models")):
    raise ImportError(
        "mdlstm_tk/models, cli and export are not folders: the symbolic links of the checkout arrived as "
        "text files; clone with `git clone -c core.symlinks=true` (on Windows in developer mode), or "
        "install the wheel with: pip install mdlstm-tk"
    )

__all__, __getattr__, __dir__ = lazy_names(
    __name__,
    {
        "_version": ("__version__",),
        "cells": ("Gate", "register_cell"),
        "errors": ("DeviceError", "InputError", "MDLSTMError", "MissingExtraError", "ParityError"),
        "layer": ("MDLSTM",),
        "states": ("BoundaryState",),
    },
    extra="train",
)
