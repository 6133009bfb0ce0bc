"""The ways to compute a sweep. All take the same arguments and give the same numbers.

`reference`  position by position, any dtype: the truth that the others are held against.
`torch`      one step per wavefront in plain torch operations, on any torch device.
`cpu`        the whole sweep as one call of code compiled by Numba.
`cuda`       one matrix product by torch and one Triton kernel per wavefront.

`dispatch` chooses which of them runs. The equations of the cells are defined once, in `mdlstm_tk.cells`.
"""
