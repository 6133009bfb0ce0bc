"""`compile_triton.py FOLDER` compiles kernels for GPUs that need not be here; writes TTIR and PTX there."""

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
from mdlstm_tk.cells.step import CELL_PARAMETERS, reads_hidden

INDICES = ("order_ptr", "predecessors_ptr", "successors_ptr", "entering_ptr", "leaving_ptr")
TYPES = {
    **dict.fromkeys(codegen.VARYING, "i32"),
    **dict.fromkeys(INDICES, "*i32"),
    "starts_ptr": "*i64",
    "d_parameter_ptr": "*fp64",
}
IN_X_DTYPE = (
    *("operand_ptr", "next_operand_ptr", "output_ptr", "bias_ptr", "parameter_ptr"),
    *("grad_ptr", "hidden_ptr", "da_ptr"),
)
IN_STATE_DTYPE = (
    *("a_ptr", "product_ptr", "state_ptr", "first_ptr", "gates_ptr", "next_dh_ptr", "d_prev_ptr"),
    *("next_d_prev_ptr", "last_ptr", "d_first_ptr"),
)
OF_STATES = ("first_ptr", "entering_ptr", "last_ptr", "leaving_ptr", "d_first_ptr")
ARGUMENTS_OF_OPTION = {  # None without it
    "bias": ("bias_ptr",),
    "initial": OF_STATES,
}


def compile_kernel(pass_kind: Any, name: str, ndim: int, options: tuple[str, ...], dtype: str) -> Any:
    """A pass of a cell as Triton compiles it, with some of its optional arguments."""
    cell = get_cell(name)
    present = tuple(name for name in CELL_PARAMETERS if name.partition("_")[0] in options)
    kernel = codegen.get_kernel(pass_kind, cell, ndim, present)
    constants: dict[str, Any] = {
        "AXES": ndim,
        "GATES": len(cell.gates(ndim)),
        "STATES": len(cell.states),
        "PARAMETERS": sum(CELL_PARAMETERS[name](cell, ndim) for name in present),
        "UNITS": 21,  # less than a block
        "RECURRENT": cell.recurrent,
        "READS_H": reads_hidden(cell, ndim),
        "KEEP_STATES": True,
        "KEEP_GATES": True,
        "ROWS": 16,
        "BLOCK": 32,
    }
    for option, arguments in ARGUMENTS_OF_OPTION.items():
        if option not in options:
            constants |= dict.fromkeys(arguments)
    if not present:
        constants |= {"parameter_ptr": None, "d_parameter_ptr": None}
    types = TYPES | dict.fromkeys(IN_X_DTYPE, f"*{dtype}")
    types |= dict.fromkeys(IN_STATE_DTYPE, "*fp64" if dtype == "fp64" else "*fp32")
    signature, values = {}, {}
    for place, argument in enumerate(kernel.arg_names):
        if argument in constants:
            signature[argument], values[(place,)] = "constexpr", constants[argument]
        else:
            signature[argument] = types[argument]
    source = ASTSource(kernel, signature, values)
    # 80 is an A100, 90 an H100; a warp has 32 threads.
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
        assembly = compile_kernel(pass_kind, cell, ndim, options, dtype).asm
        for kind in ("ttir", "ptx"):
            Path(sys.argv[1], f"{pass_kind}_{cell}_{dtype}.{kind}").write_text(assembly[kind])
