"""From PyTorch to ONNX: export a network with MDLSTM layers, and verify what was exported.

>>> from mdlstm_tk.export import export_onnx, export_run, export_tiles, verify_model
>>> export_onnx(net, "net.onnx", grid=(64, 64))
>>> export_tiles(net, "net.tiles")                        # grids of any size, tile by tile
>>> report = export_run("runs/diagonal", grid=(32, 32))
>>> verify_model(report.path).raise_if_failed()

An export captures the network as an ONNX graph in which each sweep is one node (capture.py), lowers that
node to standard operators (lowering/), and verifies the result (verification/) before a file is written.
"""

from mdlstm_tk.errors import imports_of

with imports_of("train"):
    from mdlstm_tk.export.api import export_onnx, export_tiles
    from mdlstm_tk.export.capture import translation_table
    from mdlstm_tk.export.interface import float64_reference
    from mdlstm_tk.export.lowering.lower import lower
    from mdlstm_tk.export.model_file import ExportReport
    from mdlstm_tk.export.run_export import export_run, export_run_sizes
    from mdlstm_tk.export.verification.model_verifier import verify_model
    from mdlstm_tk.export.verification.parity import Parity
    from mdlstm_tk.export.verification.report import VerificationReport

__all__ = [
    "ExportReport",
    "Parity",
    "VerificationReport",
    "export_onnx",
    "export_run",
    "export_run_sizes",
    "export_tiles",
    "float64_reference",
    "lower",
    "translation_table",
    "verify_model",
]
