"""The layer, measured against its matrix products, `torch.nn.LSTM` and plain torch operations.

>>> from mdlstm_tk.benchmark import Shape, measure
>>> measure(Shape(16, (32, 32), 1, 64), training=True).to_floor
"""

from mdlstm_tk.errors import imports_of

with imports_of("train"):
    from mdlstm_tk.benchmark.contenders import contenders, floor
    from mdlstm_tk.benchmark.measure import Measurement, measure, measure_layers
    from mdlstm_tk.benchmark.shapes import SHAPES, Shape
    from mdlstm_tk.benchmark.timing import interleave, ratios_of, torch_threads

__all__ = [
    "SHAPES",
    "Measurement",
    "Shape",
    "contenders",
    "floor",
    "interleave",
    "measure",
    "measure_layers",
    "ratios_of",
    "torch_threads",
]
