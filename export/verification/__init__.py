"""Does an ONNX file compute what the network does?

parity.py            the float64 reference, and the error of one output against it
inputs.py            inputs to compare on: random ones, odd grids, samples of the task
divergence.py        the first wavefront on which an output is wrong
export_verifier.py   the checks that `export_onnx` makes before it writes a file
model_verifier.py    `verify_model`: every runtime against the reference, for files that exist
cases.py             the inputs that it compares on, the user's own among them
graph_reference.py   the reference where only the file is known: its graph in float64
report.py            its result
"""
