"""From sweeps as single nodes to standard ONNX operators.

lower.py      replaces each node of a captured model that is a sweep
write.py      a sweep, wavefront by wavefront
scan.py       one form of this loop: one Scan of ONNX, for any grid
unrolled.py   the other form: every wavefront written out, for one grid
tables.py     the index tables of the loop
faces.py      its initial and final states
step.py       the cell's recorded step on the rows of one wavefront
graph.py      the builder that all of them write nodes with
"""
