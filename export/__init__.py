"""From torch to ONNX: capture a network with the sweep as one node, then write that node out.

>>> from mdlstm_tk.export import export_onnx
>>> export_onnx(net, "net.onnx", grid=(64, 64))
"""

from mdlstm_tk.export.api import Report, export_onnx
from mdlstm_tk.export.capture import translation_table
from mdlstm_tk.export.lowering.lower import lower
from mdlstm_tk.export.parity import Parity, float64_reference

__all__ = ["Parity", "Report", "export_onnx", "float64_reference", "lower", "translation_table"]
