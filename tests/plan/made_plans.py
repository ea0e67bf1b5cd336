"""Plans made by hand for tests of what people read: one that fits, one that does not, one analytic."""

from __future__ import annotations

import dataclasses

from maxlm.plan.result import Collective, Cost, Memory, Operation, Plan, StepTime

GIB = 1 << 30
REMAT = "jit(train_step)/transpose(jvp())/while/body/checkpoint/rematted_computation"


def memory(**other: int) -> Memory:
    """56 of 95 GiB, in GiB unless said otherwise."""
    parts = {
        "parameters": 1,
        "optimizer": 2,
        "gradients": 1,
        "activations": 40,
        "temporaries": 11,
        "other": 1,
        "host": 0,
        "capacity": 95,
    }
    return Memory(**{name: amount * GIB for name, amount in (parts | other).items()})


def operation(name: str, kind: str = "matmul", seconds: float = 0.4, **other) -> Operation:
    fields = {
        "times": 32,
        "source": "mlp.py:41",
        "module": "jit(train_step)/jvp()/while/body/mlp/dot_general",
        "shape": "bf16[2,8192,14336]{2,1,0:T(8,128)(2,1)}",
    }
    return Operation(name=name, kind=kind, seconds=seconds, **(fields | other))


def collective(name: str, kind: str, axes: tuple[str, ...] = ("fsdp",), **other) -> Collective:
    fields = {
        "size": 64,
        "times": 64,
        "payload_bytes": 15e9,
        "wire_bytes": 14.8e9,
        "seconds": 0.0822,
        "is_overlapped": False,
        "network": False,
        "source": "decoder.py:88",
    }
    return Collective(name=name, kind=kind, axes=axes, **(fields | other))


def fitting(**other) -> Plan:
    """A compiled plan that fits; its times add up and its MFU is that of its own figures."""
    time = StepTime(
        matmuls=2.2, elementwise=0.3, kernels=0.45, blocking=0.2, overlapped=0.5, exposed=0.05
    )
    # 64 chips of 459 TFLOP/s.
    flops = 0.58 * time.total * 64 * 459e12
    plan = Plan(
        config="llama3-8b parallel.fsdp=64",
        topology="v5p-128",
        method="compiled",
        mesh={"fsdp": 64},
        chips=64,
        tokens_per_step=1_048_576,
        model_flops=flops,
        mfu=0.58,
        memory=memory(),
        time=time,
        cost=Cost(15e12, 529.8, 813_800.0, 3_417_960.0, "$4.20 per chip-hour, 2026-11-01, example"),
        operations=[
            operation("fusion.1", seconds=0.8),
            operation("fusion.2", seconds=0.4, module=f"{REMAT}/mlp_gate/dot_general"),
            operation("splash_mha_fwd", "kernel", 0.3, source="splash.py:70", module="attention"),
            operation("fusion.9", "other", 0.12, source="norm.py:30", shape="f32[2,8192,4096]"),
            operation("copy.3", "other", 0.03, source="", estimated=False),
        ],
        collectives=[
            collective("all-gather.1", "all-gather", wire_bytes=29e9, is_overlapped=True),
            collective("all-reduce.1", "all-reduce", seconds=0.12),
            collective("all-reduce.2", "all-reduce", seconds=0.08, source="step.py:12"),
        ],
        notes=["The compiler's estimate: nothing was measured on a chip."],
        versions={"jax": "0.12.0.1", "libtpu": "0.0.52", "maxlm": "0.1.0"},
        compile_seconds=61.2,
    )
    return dataclasses.replace(plan, **other)


def too_large(**other) -> Plan:
    """Refused: 16 GiB over."""
    fields = {"memory": memory(activations=95), "time": None, "mfu": None, "operations": []}
    return fitting(**({"cost": Cost(15e12, None, None, None)} | fields | other))


def analytic() -> Plan:
    """By the analytic model, on GPUs, with no price, no budget and no operations."""
    return fitting(
        method="analytic",
        topology="h100x64",
        compile_seconds=None,
        cost=Cost(None, None, None, None),
        operations=[],
        versions={},
        notes=[],
    )


def refused() -> Plan:
    """Nothing is known but that it was refused."""
    return fitting(
        memory=None,
        time=None,
        mfu=None,
        cost=Cost(None, None, None, None),
        operations=[],
        collectives=[],
    )


ALL = {"fitting": fitting, "too_large": too_large, "analytic": analytic, "refused": refused}
