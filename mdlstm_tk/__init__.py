"""mdlstm-tk: multi-dimensional LSTMs that train in PyTorch and run anywhere under ONNX Runtime.

Importing this package imports neither torch nor onnx; `MDLSTM` and `register_cell` are loaded when
they are first used. The operator `mdlstm::wavefront` is registered with torch as soon as both packages are
imported, in any order, so that graphs which were saved with it can be loaded.
"""

import os.path
import warnings
from typing import TYPE_CHECKING, Any

from mdlstm_tk._util.caches import clear_caches
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
from mdlstm_tk.import_hooks import when_imported

if TYPE_CHECKING:
    from mdlstm_tk.cells import register_cell as register_cell
    from mdlstm_tk.layer import MDLSTM as MDLSTM
    from mdlstm_tk.states import BoundaryState as BoundaryState

# In a checkout mdlstm_tk/models, cli and export are symbolic links to ../models and so on. Where the links
# arrived as text files (Windows, zip) or not at all (sdist), the folders are found beside this package.
if not os.path.isdir(os.path.join(__path__[0], "models")):
    __path__.append(os.path.dirname(__path__[0]))

__all__ = [
    "MDLSTM",
    "BoundaryState",
    "DeviceError",
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
    if name == "register_cell":
        from mdlstm_tk.cells import register_cell

        return register_cell
    raise AttributeError(f"module 'mdlstm_tk' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


def _register_operator() -> None:
    try:
        import mdlstm_tk.state_operator  # noqa: F401  (it imports the other operator)
    except ImportError as error:
        # One of our own modules is importing torch just now. Whatever needs it imports the operator next.
        if not (error.name or "").startswith("mdlstm_tk."):
            warnings.warn(f"mdlstm::wavefront is not registered with torch: {error}", stacklevel=2)
    except Exception as error:  # a torch that is too old must not fail to be imported because of us
        warnings.warn(f"mdlstm::wavefront is not registered with torch: {error}", stacklevel=2)


when_imported("torch", _register_operator)
