"""From PyTorch to ONNX: export a network with MDLSTM layers, and verify what was exported.

>>> from mdlstm_tk.export import export_onnx, export_run, export_tiles, verify_model
>>> export_onnx(net, "net.onnx", grid=(64, 64))
>>> export_tiles(net, "net.tiles")                        # grids of any size, tile by tile
>>> report = export_run("runs/diagonal", grid=(32, 32))
>>> verify_model(report.path).raise_if_failed()

onnx          `export_onnx`, the walk: inputs → capture → lower → metadata → two checks → file
network       the network as its file has it, and in float64
inputs        the inputs of the file, and the grids that the network takes
capture       a graph in which each sweep is one node; conditions holds what it asks of extents to all grids
torch_ops     what torch's exporter gets wrong
lowering/     that node in standard operators
metadata      windows, features, kind
verify        is the graph the network, and does float32 suffice? verify_file asks again, later
tiles, runs   the archive for grids larger than memory; the network of a run
browser/      a page that runs a model
"""

from typing import TYPE_CHECKING

from mdlstm_tk._util.lazy import lazy_names

if TYPE_CHECKING:
    from mdlstm_tk.export.capture import translation_table as translation_table
    from mdlstm_tk.export.lowering.lower import lower as lower
    from mdlstm_tk.export.network import float64_reference as float64_reference
    from mdlstm_tk.export.onnx import ExportReport as ExportReport
    from mdlstm_tk.export.onnx import export_onnx as export_onnx
    from mdlstm_tk.export.runs import export_run as export_run
    from mdlstm_tk.export.tiles import export_tiles as export_tiles
    from mdlstm_tk.export.verify import Parity as Parity
    from mdlstm_tk.export.verify import VerificationReport as VerificationReport
    from mdlstm_tk.export.verify_file import verify_model as verify_model

__all__, __getattr__, __dir__ = lazy_names(
    __name__,
    {
        "capture": ("translation_table",),
        "lowering.lower": ("lower",),
        "network": ("float64_reference",),
        "onnx": ("ExportReport", "export_onnx"),
        "runs": ("export_run",),
        "tiles": ("export_tiles",),
        "verify": ("Parity", "VerificationReport"),
        "verify_file": ("verify_model",),
    },
    extra="train",
)
