"""A plan of a config on a topology: does it fit, how long is a step, what does the run cost.

In: a config as loaded, a `Topology`; out: a `Plan`. On TPUs the very step that will run is compiled
ahead of time and the program is read; on GPUs, or where nobody wants to wait, arithmetic says
(`arithmetic/`).
"""

from __future__ import annotations

from dataclasses import replace

from maxlm.config.schema import RunConfig
from maxlm.model.count import train_flops_per_token
from maxlm.parallel.axes import TABLE, shard_count
from maxlm.plan.arithmetic.estimate import analytic_plan
from maxlm.plan.compiling.compile import Progress, compile_program
from maxlm.plan.compiling.program import TrainProgram, build_program
from maxlm.plan.compiling.store import Compiled
from maxlm.plan.compiling.worker import sources_hash
from maxlm.plan.edges import edge_notes
from maxlm.plan.prices import Price, cost_of, price_of
from maxlm.plan.reading.memory import chips_for_state, compiled_memory, needed_bytes, state_memory
from maxlm.plan.reading.read import Reading, read_program
from maxlm.plan.result import Memory, Plan
from maxlm.plan.topology import Topology, smallest_slice


def make_plan(
    config: RunConfig,
    topology: Topology,
    *,
    name: str = "",
    compile: bool = True,
    store: str | None = None,
    vocab_size: int | None = None,
    prices: str | None = None,
    progress: Progress = lambda stage, seconds: None,
) -> Plan:
    """Plan a run.

    Args:
        config: as loaded.
        topology: what it shall run on.
        name: of the config, for people.
        compile: False: by arithmetic also on TPUs.
        store: folder of compiled programs; None: the user's cache.
        vocab_size: where neither the config nor a token store tells.
        prices: file of prices; None: those of `configs/prices.yaml`.
        progress: told what is going on while it compiles; what it raises ends the compile.

    Raises:
        ConfigError, ParallelError: the config does not fit itself or the topology.
        CompileError: the compiler failed or was ended.
        DataError, TokenizerError: a token store that is there cannot be used.
        StorageError: the store of compiled programs cannot be written.
    """
    price = price_of(topology.chip.name, prices)
    if not compile or topology.chip.platform == "gpu":
        plan = analytic_plan(config, topology, name=name, vocab_size=vocab_size)
        tokens = plan.cost.tokens
        return replace(
            plan, cost=cost_of(tokens, plan.tokens_per_second, topology.num_chips, price)
        )
    program = build_program(config, topology.devices(), vocab_size=vocab_size)
    state = state_memory(program, topology.chip)
    if not state.fits:
        notes = [_never_fits(program, topology)]
        return _plan(
            program, topology, name, memory=state, notes=notes, price=price, method="analytic"
        )
    compiled = compile_program(
        config,
        topology,
        store=store,
        vocab_size=vocab_size,
        progress=progress,
    )
    memory = compiled_memory(program, compiled, topology.chip)
    if compiled.out_of_memory:
        notes = _refusal(compiled)
        plan = _plan(program, topology, name, memory=memory, notes=notes, price=price)
        return replace(plan, versions=compiled.versions, compile_seconds=compiled.seconds)
    reading = read_program(compiled.text, chip=topology.chip, mesh=program.mesh)
    plan = _plan(
        program,
        topology,
        name,
        memory=memory,
        notes=_notes(compiled),
        price=price,
        reading=reading,
    )
    return replace(plan, versions=compiled.versions, compile_seconds=compiled.seconds)


def _plan(
    program: TrainProgram,
    topology: Topology,
    name: str,
    *,
    memory: Memory,
    notes: list[str],
    price: Price | None,
    reading: Reading | None = None,
    method: str = "compiled",
) -> Plan:
    config = program.config
    tokens = program.batch_size * program.length
    flops = train_flops_per_token(config.model, program.length) * tokens
    time = reading.time if reading else None
    speed = tokens / time.total if time else None
    peak = topology.chip.peak * topology.num_devices
    edges = edge_notes(topology, reading.collectives) if reading else []
    return Plan(
        config=name or config.name,
        topology=topology.name,
        method=method,
        mesh={axis: size for axis, size in program.mesh.shape.items() if size > 1},
        chips=topology.num_chips,
        tokens_per_step=tokens,
        model_flops=flops,
        mfu=flops / (time.total * peak) if time else None,
        memory=memory,
        time=time,
        cost=cost_of(program.resolved.total_tokens, speed, topology.num_chips, price),
        operations=reading.operations if reading else [],
        collectives=reading.collectives if reading else [],
        notes=[*program.told, *notes, *(reading.notes if reading else []), *edges],
        rows_at_once=_rows_at_once(program),
    )


def _rows_at_once(program: TrainProgram) -> int:
    shards = shard_count(program.mesh, TABLE["batch"]) * program.config.train.accumulation
    return program.batch_size // shards


def _never_fits(program: TrainProgram, topology: Topology) -> str:
    chips = chips_for_state(program, topology.chip)
    told = (
        "not compiled: parameters, optimizer state and batch alone, before gradients and activations, are "
        "more than a device has"
    )
    if chips <= topology.num_chips:
        return (
            f"{told}; spread evenly over these {topology.num_chips} chips, by more fsdp, they fit"
        )
    slice = smallest_slice(topology.chip, chips)
    where = f"the smallest such slice is {slice.name}" if slice else "several slices have so many"
    return f"{told}; spread evenly they need at least {chips} chips: {where}"


def _refusal(compiled: Compiled) -> list[str]:
    if needed_bytes(compiled.out_of_memory) is None:
        first = compiled.out_of_memory.splitlines()[0]
        return [f"the compiler refused the program and named no size: {first}"]
    return [
        "the compiler refused the program; it counts what is alive at once at the least, so the program "
        "may need more; activations and gradients are within the temporaries"
    ]


def _notes(compiled: Compiled) -> list[str]:
    if compiled.sources == sources_hash():
        return []
    return [
        "this very program was compiled before by other code: the lines that operations name are those "
        "of that code"
    ]
