"""`compile_triton.py FOLDER` compiles kernels for GPUs that need not be here, and leaves their assembly."""

import os
import sys
from pathlib import Path
from typing import Any

os.environ["TRITON_INTERPRET"] = "0"
os.environ["TRITON_CACHE_DIR"] = sys.argv[1]

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from mdlstm_tk.backends.cuda import codegen
from mdlstm_tk.cells import get_cell

TABLES = ("order_ptr", "predecessors_ptr", "successors_ptr", "entering_ptr", "leaving_ptr")
STATES = ("c_first_ptr", "entering_ptr", "leaving_ptr", "dh_last_ptr", "dc_last_ptr", "dc_first_ptr")
SUMS = ("dpeephole", "dnorm_weight", "dnorm_bias")
PARAMETERS = ("bias", "peephole", "norm_weight", "norm_bias")
IN_X_DTYPE = (
    "operand_ptr",
    "next_operand_ptr",
    "output_ptr",
    "grad_ptr",
    "dh_last_ptr",
    "da_ptr",
    *PARAMETERS,
)


def compiled(pass_kind: Any, cell: str, ndim: int, extras: bool, dtype: str, capability: int) -> Any:
    kernel = codegen.get_kernel(pass_kind, cell, ndim, extras and cell == "graves", extras)
    state = "fp64" if dtype == "fp64" else "fp32"
    constants = {
        "AXES": ndim,
        "GATES": len(get_cell(cell).gates(ndim)),
        "UNITS": 21,
        "ROWS": 16,
        "BLOCK": 32,
    }
    constants |= {"KEEP_C": True, "KEEP_GATES": True}
    if not extras:
        absent = ("peephole", "norm_weight", "norm_bias")
        constants |= dict.fromkeys(
            [*absent, *(f"d{name}" for name in absent), "bias", "valid_ptr", *STATES]
        )
    signature, values = {}, {}
    for place, name in enumerate(kernel.arg_names):
        if name in constants:
            signature[name], values[(place,)] = "constexpr", constants[name]
        elif name in codegen.VARYING:
            signature[name] = "i32"
        elif name in TABLES:
            signature[name] = "*i32"
        elif name == "starts_ptr":
            signature[name] = "*i64"
        elif name in SUMS:
            signature[name] = "*fp64"
        elif name == "valid_ptr":
            signature[name] = "*i1"
        else:
            signature[name] = f"*{dtype if name in IN_X_DTYPE else state}"
    source = ASTSource(kernel, signature, values)
    return triton.compile(source, target=GPUTarget("cuda", capability, 32))


get_cell(f"{Path(__file__).parents[2]}/examples/own_cell.py:input-gated")
for pass_kind in ("forward", "backward"):
    for cell, ndim, extras, dtype, capability in (
        ("graves", 2, True, "bf16", 80),
        ("graves", 1, False, "fp32", 90),
        ("stable", 3, False, "fp64", 90),
        ("leaky", 2, False, "fp16", 80),
        ("input-gated", 2, False, "fp32", 90),  # has no recurrent product
    ):
        assembly = compiled(pass_kind, cell, ndim, extras, dtype, capability).asm
        for kind in ("ttir", "ptx"):
            Path(sys.argv[1], f"{pass_kind}_{cell}_{dtype}.{kind}").write_text(assembly[kind])
