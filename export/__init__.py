"""From PyTorch to ONNX: export a network with MDLSTM layers, and verify what was exported.

>>> from mdlstm_tk.export import export_onnx, export_run, export_tiles, verify_model
>>> export_onnx(net, "net.onnx", grid=(64, 64))
>>> export_tiles(net, "net.tiles")                        # grids of any size, tile by tile
>>> report = export_run("runs/diagonal", grid=(32, 32))
>>> verify_model(report.path).raise_if_failed()

An export captures the network as an ONNX graph in which each sweep is one node (capture.py), lowers that
node to standard operators (lowering/), and verifies the result (verification/) before a file is written.
"""

from typing import TYPE_CHECKING

from mdlstm_tk._util.lazy import lazy_names

if TYPE_CHECKING:
    from mdlstm_tk.export.api import export_onnx as export_onnx
    from mdlstm_tk.export.api import export_tiles as export_tiles
    from mdlstm_tk.export.capture import translation_table as translation_table
    from mdlstm_tk.export.interface import float64_reference as float64_reference
    from mdlstm_tk.export.lowering.lower import lower as lower
    from mdlstm_tk.export.model_file import ExportReport as ExportReport
    from mdlstm_tk.export.run_export import export_run as export_run
    from mdlstm_tk.export.run_export import export_run_sizes as export_run_sizes
    from mdlstm_tk.export.verification.model_verifier import verify_model as verify_model
    from mdlstm_tk.export.verification.parity import Parity as Parity
    from mdlstm_tk.export.verification.report import VerificationReport as VerificationReport

__all__, __getattr__, __dir__ = lazy_names(
    __name__,
    {
        "api": ("export_onnx", "export_tiles"),
        "capture": ("translation_table",),
        "interface": ("float64_reference",),
        "lowering.lower": ("lower",),
        "model_file": ("ExportReport",),
        "run_export": ("export_run", "export_run_sizes"),
        "verification.model_verifier": ("verify_model",),
        "verification.parity": ("Parity",),
        "verification.report": ("VerificationReport",),
    },
    extra="train",
)
