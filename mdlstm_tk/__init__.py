"""mdlstm-tk: multi-dimensional LSTMs that train in PyTorch and run anywhere under ONNX Runtime.

Importing this package imports neither torch nor onnx; `MDLSTM` is loaded when it is first used.
"""

from typing import TYPE_CHECKING, Any

from mdlstm_tk._version import __version__
from mdlstm_tk.errors import (
    DeviceError,
    InputError,
    MDLSTMError,
    MissingExtraError,
    ParityError,
    require,
)

if TYPE_CHECKING:
    from mdlstm_tk.layer import MDLSTM as MDLSTM


__all__ = [
    "MDLSTM",
    "DeviceError",
    "InputError",
    "MDLSTMError",
    "MissingExtraError",
    "ParityError",
    "__version__",
]


def __getattr__(name: str) -> Any:
    if name == "MDLSTM":
        require("torch", "train")
        from mdlstm_tk.layer import MDLSTM

        return MDLSTM
    raise AttributeError(f"module 'mdlstm_tk' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
