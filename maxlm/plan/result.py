"""What a plan says, as plain dataclasses: what every report, page and search reads.

Bytes are of one jax device, seconds of one step, and floats are never rounded here.
"""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(frozen=True)
class Memory:
    """Bytes on one device at the step's peak, by kind; they add up to `total`.

    Attributes:
        parameters: master weights and variables.
        optimizer: the optimizer's state and averaged weights.
        gradients: of the parameters, as far as they are alive at once.
        activations: kept from the forward for the backward pass.
        temporaries: the rest of what the compiler allocates.
        other: inputs (the batch), outputs that are not donated, the program itself.
        host: in the host's memory, not part of `total`.
        capacity: what a program may use.
    """

    parameters: int
    optimizer: int
    gradients: int
    activations: int
    temporaries: int
    other: int
    host: int
    capacity: int

    @property
    def total(self) -> int:
        """Bytes at the peak."""
        parts = (self.parameters, self.optimizer, self.gradients, self.activations)
        return sum(parts) + self.temporaries + self.other

    @property
    def fits(self) -> bool:
        """Whether the peak is within the capacity."""
        return self.total <= self.capacity


@dataclass(frozen=True)
class Operation:
    """One operation of the compiled program.

    Attributes:
        name: the compiler's.
        kind: `matmul`, `kernel`, `other` or `collective`.
        times: how often it runs in a step.
        seconds: of all its runs.
        source: `file.py:line` in the model that it comes from; empty: unknown.
        module: path of modules and functions in which it was traced, such as `jit(train_step)/…`.
        shape: of its result.
        estimated: False where the compiler gave no estimate and bytes over bandwidth are charged.
    """

    name: str
    kind: str
    times: int
    seconds: float
    source: str
    module: str
    shape: str
    estimated: bool = True


@dataclass(frozen=True)
class Collective:
    """One collective of the compiled program.

    Attributes:
        name: the compiler's.
        kind: `all-gather`, `reduce-scatter`, `all-reduce`, `all-to-all`, `collective-permute`, ….
        axes: mesh axes over which it goes, such as `("fsdp",)`; empty: not recognised.
        size: devices of a group.
        times: how often it runs in a step.
        payload_bytes: of all its runs, per device.
        wire_bytes: that a device sends in all its runs, on a ring.
        seconds: of all its runs on the links that it uses.
        is_overlapped: whether the program computes meanwhile (asynchronous).
        network: whether it crosses slices or machines.
        source: `file.py:line`; empty: unknown.
    """

    name: str
    kind: str
    axes: tuple[str, ...]
    size: int
    times: int
    payload_bytes: float
    wire_bytes: float
    seconds: float
    is_overlapped: bool
    network: bool
    source: str = ""


@dataclass(frozen=True)
class StepTime:
    """Where the seconds of a step go: `total = compute + kernels + blocking + exposed`.

    Attributes:
        matmuls: by the compiler's cycles.
        elementwise: other operations with cycles, and what is charged by its bytes.
        kernels: Pallas kernels (on GPUs, attention).
        blocking: collectives during which nothing else runs.
        overlapped: collectives beside compute, whole.
        exposed: what of `overlapped` compute does not hide.
        bubble: idle seconds of a pipeline's stages, part of the former ones.
    """

    matmuls: float
    elementwise: float
    kernels: float
    blocking: float
    overlapped: float
    exposed: float
    bubble: float = 0.0

    @property
    def compute(self) -> float:
        """Seconds of compute without kernels."""
        return self.matmuls + self.elementwise

    @property
    def total(self) -> float:
        """Seconds of a step."""
        return self.compute + self.kernels + self.blocking + self.exposed


@dataclass(frozen=True)
class Cost:
    """What the whole run takes; None where there is no token budget or no price."""

    tokens: float | None
    days: float | None
    chip_hours: float | None
    dollars: float | None
    price: str = ""  # of a chip and hour, with its date and source


@dataclass(frozen=True)
class Plan:
    """One config on one topology.

    Attributes:
        config: presets and overrides, as given.
        topology: product name, such as `2 × v5p-128`.
        method: `compiled` or `analytic`.
        mesh: axis → size, those over 1.
        chips: how many.
        tokens_per_step: global.
        model_flops: of a step, by the formula of docs/metrics.md, over all devices.
        mfu: model FLOPs over peak; None where the step's time is unknown.
        memory: None where the compile was refused before it was known.
        time: None where the program does not fit, so that there is no schedule.
        operations: costliest first.
        collectives: most wire bytes first.
        notes: sentences for people: what was chosen, assumed, or could not be known.
        versions: jax, libtpu, maxlm.
        compile_seconds: None for the analytic method.
        rows_at_once: of the devices that share rows, in a micro-batch; None: not known.
    """

    config: str
    topology: str
    method: str
    mesh: dict[str, int]
    chips: int
    tokens_per_step: int
    model_flops: float
    mfu: float | None
    memory: Memory | None
    time: StepTime | None
    cost: Cost
    operations: list[Operation] = field(default_factory=list)
    collectives: list[Collective] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    versions: dict[str, str] = field(default_factory=dict)
    compile_seconds: float | None = None
    rows_at_once: int | None = None

    @property
    def tokens_per_second(self) -> float | None:
        """Over all devices."""
        return self.tokens_per_step / self.time.total if self.time else None
