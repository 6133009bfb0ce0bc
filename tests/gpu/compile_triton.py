"""`compile_triton.py FOLDER` compiles kernels for GPUs that need not be here, and leaves their assembly."""

import os
import sys
from pathlib import Path
from typing import Any

os.environ["TRITON_INTERPRET"] = "0"
os.environ["TRITON_CACHE_DIR"] = sys.argv[1]

sys.path.insert(0, str(Path(__file__).parents[1]))

import triton
from helpers.own_cells import register_own_cells
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from mdlstm_tk.backends.cuda import codegen
from mdlstm_tk.cells import get_cell
from mdlstm_tk.cells.lowering import reads_hidden
from mdlstm_tk.cells.step import CELL_PARAMETERS

TYPES = {
    **dict.fromkeys(codegen.VARYING, "i32"),
    **dict.fromkeys(("order_ptr", "predecessors_ptr", "successors_ptr"), "*i32"),
    **dict.fromkeys(("entering_ptr", "leaving_ptr"), "*i32"),
    "starts_ptr": "*i64",
    "valid_ptr": "*i1",
    "d_parameter_ptr": "*fp64",
}
IN_X_DTYPE = ("operand_ptr", "next_operand_ptr", "output_ptr", "bias_ptr", "parameter_ptr")
IN_X_DTYPE += ("grad_ptr", "hidden_ptr", "da_ptr")
OF_STATES = ("first_ptr", "entering_ptr", "last_ptr", "leaving_ptr", "d_first_ptr")
OPTIONS = {  # name of an option: the arguments that are None without it
    "bias": ("bias_ptr",),
    "sizes": ("valid_ptr",),
    "initial": OF_STATES,
}


def compiled(pass_kind: Any, name: str, ndim: int, options: tuple[str, ...], dtype: str) -> Any:
    cell = get_cell(name)
    present = tuple(name for name in CELL_PARAMETERS if name.partition("_")[0] in options)
    kernel = codegen.get_kernel(pass_kind, cell, ndim, present)
    constants: dict[str, Any] = {
        "AXES": ndim,
        "GATES": len(cell.gates(ndim)),
        "STATES": len(cell.states),
        "PARAMETERS": sum(CELL_PARAMETERS[name](cell, ndim) for name in present),
        "UNITS": 21,
        "RECURRENT": cell.recurrent,
        "READS_H": reads_hidden(cell, ndim),
        "KEEP_STATES": True,
        "KEEP_GATES": True,
        "ROWS": 16,
        "BLOCK": 32,
    }
    for option, arguments in OPTIONS.items():
        if option not in options:
            constants |= dict.fromkeys(arguments)
    if not present:
        constants |= {"parameter_ptr": None, "d_parameter_ptr": None}
    state = "fp64" if dtype == "fp64" else "fp32"
    signature, values = {}, {}
    for place, argument in enumerate(kernel.arg_names):
        if argument in constants:
            signature[argument], values[(place,)] = "constexpr", constants[argument]
        else:
            default = f"*{dtype if argument in IN_X_DTYPE else state}"
            signature[argument] = TYPES.get(argument, default)
    source = ASTSource(kernel, signature, values)
    return triton.compile(source, target=GPUTarget("cuda", 80 if dtype == "bf16" else 90, 32))


register_own_cells()
for pass_kind in ("forward", "backward"):
    for cell, ndim, options, dtype in (
        ("graves", 2, ("bias", "peephole", "sizes", "initial"), "bf16"),
        ("graves", 1, ("bias", "peephole", "norm"), "fp64"),
        ("slstm", 2, ("bias",), "fp32"),
        ("leaky", 2, (), "fp16"),
        ("gru", 2, ("norm", "initial"), "fp16"),
        ("h-is-c", 2, ("sizes",), "fp32"),
        ("all-operations", 1, (), "fp32"),
        ("all-operations", 1, (), "fp64"),
    ):
        assembly = compiled(pass_kind, cell, ndim, options, dtype).asm
        for kind in ("ttir", "ptx"):
            Path(sys.argv[1], f"{pass_kind}_{cell}_{dtype}.{kind}").write_text(assembly[kind])
