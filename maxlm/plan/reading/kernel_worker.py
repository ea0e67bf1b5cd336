"""The child process that compiles one Pallas kernel for a described TPU, so that its schedule is written.

In: on standard input, JSON with the kernel's `config`, its `operands` and `results` as (dtype, dims), the `chip`,
and whether it is a `grouped` matmul; `LIBTPU_INIT_ARGS` says where schedules go. Out: on standard output, JSON
with the kernel's `grid` and its `windows`, or with an `error`.
"""

from __future__ import annotations

import base64
import json
import sys
from typing import Any

_DTYPES = {
    "bf16": "bfloat16",
    "f32": "float32",
    "f16": "float16",
    "s32": "int32",
    "s16": "int16",
    "s8": "int8",
    "u32": "uint32",
    "u16": "uint16",
    "u8": "uint8",
    "pred": "bool",
}


def main() -> None:
    """Read a job, compile it, print its grid."""
    job = json.load(sys.stdin)
    grid, windows = kernel_grid(job["config"]["body"])
    if any(size < 0 for size in grid) and not job["grouped"]:
        print(json.dumps({"error": f"its grid depends on data ({_sizes(grid)})"}))
        return
    compile_kernel(job)
    print(json.dumps({"grid": grid, "windows": windows}))


def kernel_grid(body: str) -> tuple[list[int], list[list[int]]]:
    """Blocks along each dim of a kernel's grid, and what a block sees of each operand and result.

    Args:
        body: the kernel's code, base64 of MLIR's bytecode.

    Returns:
        sizes, below 0 where they depend on data, and those of each window.
    """
    # Pallas has no public way to read a kernel that is compiled already.
    from jax._src.lib import tpu
    from jax._src.lib.mlir import ir

    with ir.Context() as context:
        tpu.register_dialect(context)
        context.allow_unregistered_dialects = True
        module = ir.Module.parse(base64.b64decode(body))
        for operation in module.body.operations:
            attributes = operation.operation.attributes
            if "iteration_bounds" in attributes:
                windows = [ir.DictAttr(w) for w in ir.ArrayAttr(attributes["window_params"])]
                bounds = [w["window_bounds"] for w in windows if "window_bounds" in w]
                return _numbers(attributes["iteration_bounds"]), [_numbers(b) for b in bounds]
    return [], []


def _numbers(attribute: Any) -> list[int]:
    from jax._src.lib.mlir import ir

    return [int(number) for number in ir.DenseI64ArrayAttr(attribute)]


def compile_kernel(job: dict[str, Any]) -> None:
    """Compile a program that calls the kernel and nothing else."""
    import jax
    import numpy as np
    from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

    from maxlm.plan.topology import parse_topology

    device = parse_topology(f"{job['chip']}-8").devices()[0]
    mesh = Mesh(np.array([device]), ("x",), axis_types=(AxisType.Auto,))
    place = NamedSharding(mesh, PartitionSpec())

    def arrays(described: list[Any], sharding: Any) -> list[jax.ShapeDtypeStruct]:
        return [
            jax.ShapeDtypeStruct(tuple(dims), np.dtype(_DTYPES[dtype]), sharding=sharding)
            for dtype, dims in described
        ]

    results: Any = arrays(job["results"], None)
    call = jax.ffi.ffi_call(
        "tpu_custom_call",
        results if len(results) > 1 else results[0],
        custom_call_api_version=1,
        legacy_backend_config=json.dumps({"custom_call_config": job["config"]}),
    )
    jax.jit(lambda *given: call(*given)).lower(*arrays(job["operands"], place)).compile()


def _sizes(grid: list[int]) -> str:
    return " × ".join(str(size) if size >= 0 else "?" for size in grid)


if __name__ == "__main__":
    main()
