"""From sweeps as single nodes to standard ONNX operators.

lower.py      replaces each `mdlstm::Wavefront` node of a captured model
unrolled.py   one way to write a sweep: every wavefront written out, for one grid
scan.py       the other way: one ONNX Scan over the wavefronts, for one grid or for any
tables.py     the index tables of a scan
step.py       the equations of one wavefront, which both forms share
functions.py  each wavefront of an unrolled sweep as one function call, for graph viewers
graph.py      the builder that all of them write nodes with
"""
