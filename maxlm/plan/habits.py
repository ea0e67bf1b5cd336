"""What compilers do with a train step, as seen in compiled programs: the analytic model's constants.

Each constant says where it was seen. A search corrects what they get wrong, by what it compiles.
"""

from __future__ import annotations

from dataclasses import dataclass

from maxlm.plan.job import Job

# By libtpu 0.0.52 the cycles of large matmuls (4096 × 14336 × 16384 on v5p, 4096 × 11008 × 4096 on v5e) are 0.97
# and 0.98 of the ideal with xla_tpu_scoped_vmem_limit_kib=65536; without it 0.88 to 0.90.
MATMUL_TPU = 0.98
MATMUL_TPU_NARROW = 0.89
VMEM_OPTION = "xla_tpu_scoped_vmem_limit_kib"
# Large bfloat16 matmuls of cuBLAS on H100 (about 700 of 989 TFLOP/s under its power limit; NVIDIA's and
# others' published figures). Not measured here.
MATMUL_GPU = 0.70
# Bytes that the TPU compiler counts for element-wise fusions, a cycle and TensorCore, as `compute_time`
# counts them: fitted to steps of llama3-8b on v5p and llama2-7b on v5e (libtpu 0.0.52).
ELEMENTWISE_BYTES_PER_CYCLE = 180.0
# Of memory bandwidth that element-wise kernels reach on a GPU. Not measured here.
ELEMENTWISE_GPU = 0.8
REDUCE_SCATTER_OPTION = "xla_tpu_enable_sparse_core_collective_offload_reduce_scatter"


# Matmuls and element-wise work of a v5e whose gathers are cut into windows along a ring: each part of the
# width is multiplied by itself and added up. Seen in small models on 2×4 chips (libtpu 0.0.52): fsdp
# over all 8 takes 2.5 times as long as over 4, and fsdp 4 × tensor 2 1.5 times.
_WINDOWED = 2.5
_WINDOWED_BESIDE_TENSOR = 1.5


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


# Groups up to which gradients are reduce-scattered without the option, and without a window: v5p 16 yes, 64
# no; v5e 4 yes, 16 no (docs/parallelism.md, docs/memory.md).
_LARGEST_SCATTERED = {"v5p": 16, "v4": 16}


def habits_of(job: Job) -> Habits:
    """What the compiler of a job's chip does with the gathering of parameters over its mesh."""
    options, name = job.config.parallel.compiler_options, job.chip.name
    if job.chip.platform == "gpu":
        overlap = bool(options.get("xla_gpu_enable_latency_hiding_scheduler"))
        return Habits(MATMUL_GPU, 1.0, overlap, True, overlap)
    group = job.size("fsdp", "expert", "context")
    windowed = name == "v5e" and group == 8
    slowdown = _WINDOWED if windowed else 1.0
    if name == "v5e" and 1 < group < 8 and job.mesh["tensor"] > 1:
        slowdown = _WINDOWED_BESIDE_TENSOR
    by_core = name == "tpu7x" or bool(options.get(REDUCE_SCATTER_OPTION))
    return Habits(
        matmul=MATMUL_TPU if VMEM_OPTION in options else MATMUL_TPU_NARROW,
        slowdown=slowdown,
        gathers_overlap=name in ("v5e", "tpu7x"),
        reduce_scatters=by_core or windowed or group <= _LARGEST_SCATTERED.get(name, 4),
        reductions_overlap=windowed or (by_core and name != "v5e"),
    )
