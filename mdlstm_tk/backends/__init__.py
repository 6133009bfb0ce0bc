"""The ways to compute a sweep. All take the same arguments and give the same numbers.

`reference`  cell by cell, any dtype: the truth the others are held against.
`unrolled`   one step a wavefront in plain torch ops, on any torch device.
"""
