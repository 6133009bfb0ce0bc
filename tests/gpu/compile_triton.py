"""`compile_triton.py FOLDER` compiles the kernels of some sweeps for GPUs that need not be here, and writes
TTIR and PTX there."""

import os
import sys
from pathlib import Path
from typing import Any

os.environ["TRITON_INTERPRET"] = "0"
os.environ["TRITON_CACHE_DIR"] = sys.argv[1]

sys.path.insert(0, str(Path(__file__).parents[1]))

import torch
import triton
from helpers.own_cells import register_own_cells
from helpers.parity import Case
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from mdlstm_tk import sweep as sweep_module
from mdlstm_tk.backends.cuda import codegen, sweep

TYPES = {
    torch.float16: "*fp16",
    torch.bfloat16: "*bf16",
    torch.float32: "*fp32",
    torch.float64: "*fp64",
    torch.int32: "*i32",
    torch.int64: "*i64",
}
CASES = [  # 21 units: less than a block
    Case(units=21, peephole=True, sizes=True, states=True, dtype="bfloat16"),
    Case(grid=(4,), units=21, peephole=True, layer_norm=True),
    Case("slstm", units=21, dtype="float32"),
    Case("leaky", units=21, bias=False, dtype="float16"),
    Case("gru", units=21, layer_norm=True, states=True, dtype="float16"),
    Case("h-is-c", units=21, sizes=True, dtype="float32"),
    *(Case("all-operations", (2,), units=21, dtype=dtype) for dtype in ("float32", "float64")),
]


class Compiled:
    """A kernel that is compiled where it would be launched."""

    def __init__(self, name: str, kernel: Any) -> None:
        self.name, self.kernel, self.is_compiled = name, kernel, False

    def __getitem__(self, grid: Any) -> Any:
        return self.compile

    def compile(self, **arguments: Any) -> None:
        if self.is_compiled:
            return
        signature, constants = {}, {}
        for place, name in enumerate(self.kernel.arg_names):
            value = arguments[name]
            if isinstance(value, torch.Tensor):
                signature[name] = TYPES[value.dtype]
            elif name in codegen.VARYING:
                signature[name] = "i32"
            else:
                signature[name], constants[(place,)] = "constexpr", value
        # 80 is an A100, 90 an H100; a warp has 32 threads.
        target = GPUTarget("cuda", 80 if "*bf16" in signature.values() else 90, 32)
        assembly = triton.compile(ASTSource(self.kernel, signature, constants), target=target).asm
        for kind in ("ttir", "ptx"):
            Path(sys.argv[1], f"{self.name}.{kind}").write_text(assembly[kind])
        self.is_compiled = True


register_own_cells()
get_kernel = codegen.get_kernel
sweep_module.engine = lambda *_: sweep  # type: ignore[assignment, return-value]
for number, case in enumerate(CASES):
    made: dict[Any, Compiled] = {}

    def compiled(kind: Any, *others: Any, number: int = number, made: Any = made) -> Compiled:
        return made.setdefault(kind, Compiled(f"{number}-{kind}", get_kernel(kind, *others)))

    sweep.get_kernel = compiled  # type: ignore[assignment]
    case.run("fused")
