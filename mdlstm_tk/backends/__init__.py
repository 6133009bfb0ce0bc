"""The ways to compute a sweep. All take the same arguments and give the same numbers.

`reference`  cell by cell, any dtype: the truth the others are held against.
`unrolled`   one step a wavefront in plain torch ops, on any torch device.
`fused_cpu`  the whole sweep as one call of compiled code, in Numba.
`fused_cuda` one step a wavefront: a product by torch, and all else in one kernel, in Triton.

`choice` says which of them runs. The cells' equations are written once, in `mdlstm_tk.cells`: `step`
applies them to torch tensors, and `trace` records them for the fused kernels.
"""
