"""Does an ONNX file compute what the network does?

cases.py             the inputs to compare on: random ones, odd grids, samples of the task, the user's own
comparison.py        the loop that compares runtimes with a reference on cases
parity.py            the error of one output, and the first wavefront on which it is wrong
export_verifier.py   the check that every export passes before its file is written
model_verifier.py    `verify_model`: every runtime against the reference, for files that exist
graph_reference.py   the reference where only the file is known: its graph in float64
report.py            the result of `verify_model`
"""
