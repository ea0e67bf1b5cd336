"""What compilers do with a train step, as seen in compiled programs: the analytic model's constants.

Each constant says where it was seen. A search corrects what they get wrong, by what it compiles.
"""

from __future__ import annotations

from dataclasses import dataclass

from maxlm.plan.arithmetic.job import Job
from maxlm.plan.arithmetic.links import torus_links

# By libtpu 0.0.52 the cycles of large matmuls (4096 × 14336 × 16384 on v5p, 4096 × 11008 × 4096 on v5e) are 0.97
# and 0.98 of the ideal with xla_tpu_scoped_vmem_limit_kib=65536; without it 0.88 to 0.90. On v6e those of
# llama3-8b's and 70b's steps are 0.80 and 0.83 of it (98304), 12% more cycles without.
MATMUL_TPU = 0.98
MATMUL_TPU_NARROW = 0.89
MATMUL_V6E = 0.83
MATMUL_V6E_NARROW = 0.73
VMEM_OPTION = "xla_tpu_scoped_vmem_limit_kib"
# Grouped matmuls of experts, in their kernel: of the peak over the tiles that they visit, forward and backward
# together, by the kernel's schedules (tools/compare_grouped_tiles.py). Tiles have so many rows.
GROUPED_TPU = {"v5p": 0.88, "v5e": 0.88, "v6e": 0.48}
GROUPED_TPU |= {"v4": GROUPED_TPU["v5p"], "tpu7x": GROUPED_TPU["v6e"]}  # not measured
GROUPED_ROWS = 256
# Large bfloat16 matmuls of cuBLAS on H100 (about 700 of 989 TFLOP/s under its power limit; NVIDIA's and
# others' published figures). Not measured here.
MATMUL_GPU = 0.70
# Bytes a cycle and TensorCore at which the TPU compiler copies an array of residual streams (libtpu 0.0.52).
ELEMENTWISE_BYTES_PER_CYCLE = {"v5p": 287.0, "v5e": 222.0, "v6e": 378.0}
# Not measured: v4 has v5p's cores, TPU7x those of v6e.
ELEMENTWISE_BYTES_PER_CYCLE |= {
    "v4": ELEMENTWISE_BYTES_PER_CYCLE["v5p"],
    "tpu7x": ELEMENTWISE_BYTES_PER_CYCLE["v6e"],
}


@dataclass(frozen=True)
class Passes:
    """How often element-wise work of a layer, forward and backward, reads or writes an array of some width.

    Attributes:
        residual: arrays of the residual width: norms and sums.
        query: of all queries: scaling, what attention's kernels need beside them.
        hidden: of an MLP's hidden width: activations. On v5p they are all fused into matmuls.
    """

    residual: float
    query: float
    hidden: float


# Of llama3-8b on v5p and v6e; of llama2-7b, qwen3-0.6b and gpt2-124m on v5e (libtpu 0.0.52).
PASSES = {"v5p": Passes(11, 7, 0), "v5e": Passes(12, 8, 6), "v6e": Passes(11, 7, 3)}
PASSES |= {"v4": PASSES["v5p"], "tpu7x": PASSES["v6e"]}
# RoPE is not fused there, nor activations. Not measured.
PASSES_GPU = Passes(14, 8, 5)
# Of memory bandwidth that element-wise kernels reach on a GPU. Not measured here.
ELEMENTWISE_GPU = 0.8
_OFFLOAD = "xla_tpu_enable_sparse_core_collective_offload_"
REDUCE_SCATTER_OPTION = f"{_OFFLOAD}reduce_scatter"
# By how many axes of the torus a group lies over.
GATHER_OPTIONS = (
    f"{_OFFLOAD}all_gather",
    f"{_OFFLOAD}2d_all_gather",
    f"{_OFFLOAD}3d_all_gather",
)


# Matmuls and element-wise work of a v5e whose gathers are cut into windows along a ring: each part of the
# width is multiplied by itself and added up. Seen in small models on 2×4 chips (libtpu 0.0.52): fsdp
# over all 8 takes twice as long as over 4, and fsdp beside tensor 1.1 to 1.3 times.
_WINDOWED = 2.0
_WINDOWED_BESIDE_TENSOR = 1.25


@dataclass(frozen=True)
class Habits:
    """What a compiler does with a mesh.

    Attributes:
        matmul: share of the peak of large matmuls.
        slowdown: factor on the layers' matmuls and element-wise work.
        gathers_overlap: whether parameters are gathered while matmuls run.
        reduce_scatters: whether gradients are scattered as they are summed, or all-reduced.
        reductions_overlap: whether that goes on while matmuls run.
    """

    matmul: float
    slowdown: float
    gathers_overlap: bool
    reduce_scatters: bool
    reductions_overlap: bool


# Up to so many devices a group's gradients are reduce-scattered even where it is all of a slice (2×2 chips: yes;
# 4×4 of v5e, 4×4×4 of v5p and 16×16 of v6e: all-reduced; docs/memory.md). Groups of 16×8 and 8×8 of a v6e's 16×16 are.
_LARGEST_SCATTERED = 4


def habits_of(job: Job) -> Habits:
    """What the compiler of a job's chip does with the gathering of parameters over its mesh."""
    options, name = job.config.parallel.compiler_options, job.chip.name
    if job.chip.platform == "gpu":
        overlap = bool(options.get("xla_gpu_enable_latency_hiding_scheduler"))
        return Habits(MATMUL_GPU, 1.0, overlap, True, overlap)
    axes = ("fsdp", "expert", "context")
    group, links = job.size(*axes), torus_links(job, axes)
    windowed = name == "v5e" and group == 8
    slowdown = _WINDOWED if windowed else 1.0
    if name == "v5e" and 1 < group < 8 and job.mesh["tensor"] > 1:
        slowdown = _WINDOWED_BESIDE_TENSOR
    all_of_slice = group * job.topology.slices == job.topology.num_devices
    whole = all_of_slice and group > _LARGEST_SCATTERED
    by_core = name == "tpu7x" or bool(options.get(REDUCE_SCATTER_OPTION))
    gathers = GATHER_OPTIONS[: max(1, links)]
    wide, narrow = (
        (MATMUL_V6E, MATMUL_V6E_NARROW) if name == "v6e" else (MATMUL_TPU, MATMUL_TPU_NARROW)
    )
    return Habits(
        matmul=wide if VMEM_OPTION in options else narrow,
        slowdown=slowdown,
        # On v5e those of fsdp 16 on 4×4 and 64 on 8×8 run beside matmuls, those of 4 and of 32 there block.
        gathers_overlap=name == "tpu7x"
        or (name == "v5e" and all_of_slice)
        or all(options.get(o) for o in gathers),
        reduce_scatters=windowed or not whole,
        reductions_overlap=windowed or (by_core and not whole and name != "v5e"),
    )
