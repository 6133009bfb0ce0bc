"""From sweeps as single nodes to standard ONNX operators.

lower.py      replaces each node of a captured model that is a sweep
unrolled.py   one way to write a sweep: every wavefront written out, for one grid
scan.py       the other way: one ONNX Scan over the wavefronts, for one grid or for any
tables.py     the index tables of scans
faces.py      initial and final states of scans
step.py       the cell's recorded step on the rows of one wavefront, which both forms share
graph.py      the builders that all of them write nodes and loops with
"""
