"""mdlstm-tk: multi-dimensional LSTMs that train in PyTorch and run anywhere under ONNX Runtime.

Importing this package imports neither torch nor onnx; `MDLSTM`, `BoundaryState`, `Gate` and `register_cell`
are loaded when they are first used. The operator `mdlstm::wavefront` is registered with torch by
`mdlstm_tk.layer`; import that before you load a graph that was saved with it.
"""

import os.path
from typing import TYPE_CHECKING, Any

from mdlstm_tk._version import __version__
from mdlstm_tk.errors import (
    DeviceError,
    InputError,
    MDLSTMError,
    MissingExtraError,
    ParityError,
    StoppedError,
    require,
)

if TYPE_CHECKING:
    from mdlstm_tk._util.caches import clear_caches as clear_caches
    from mdlstm_tk.cells import Gate as Gate
    from mdlstm_tk.cells import register_cell as register_cell
    from mdlstm_tk.layer import MDLSTM as MDLSTM
    from mdlstm_tk.states import BoundaryState as BoundaryState

# In a checkout mdlstm_tk/models, cli and export are symbolic links to ../models and so on.
if not os.path.isdir(os.path.join(__path__[0], "models")):
    raise ImportError(
        "mdlstm_tk/models, cli and export are no folders: the symbolic links of the checkout arrived as "
        "text files; clone with `git clone -c core.symlinks=true` (on Windows in developer mode), or "
        "install the wheel with: pip install mdlstm-tk"
    )

__all__ = [
    "MDLSTM",
    "BoundaryState",
    "DeviceError",
    "Gate",
    "InputError",
    "MDLSTMError",
    "MissingExtraError",
    "ParityError",
    "StoppedError",
    "__version__",
    "clear_caches",
    "register_cell",
]


def __getattr__(name: str) -> Any:
    if name == "MDLSTM":
        require("torch", "train")
        from mdlstm_tk.layer import MDLSTM

        return MDLSTM
    if name == "BoundaryState":
        require("torch", "train")
        from mdlstm_tk.states import BoundaryState

        return BoundaryState
    if name == "clear_caches":
        from mdlstm_tk._util.caches import clear_caches

        return clear_caches
    if name in ("Gate", "register_cell"):
        from mdlstm_tk import cells

        return getattr(cells, name)
    raise AttributeError(f"module 'mdlstm_tk' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
