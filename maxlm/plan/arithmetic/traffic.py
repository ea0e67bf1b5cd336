"""What a device sends in a step, axis by axis, without compiling it.

In: a `Job`; out: its collectives as `Collective`s, with wire bytes of a ring, seconds on the links that
the axes have, and whether they overlap with compute. What a compiler makes of an axis is in
`habits.py`; what each axis sends is in docs/parallelism.md.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

from maxlm.config.choices import ContextAttention
from maxlm.config.expert_layers import Layer, layers_of
from maxlm.config.head_widths import value_dim
from maxlm.kernels.context.ulysses import heads_of_device
from maxlm.model.decoder import padded_vocab
from maxlm.parallel.axes import TABLE
from maxlm.plan.arithmetic.habits import Habits, habits_of
from maxlm.plan.arithmetic.job import Job
from maxlm.plan.arithmetic.layer_work import WIDE, LayerWork, itemsize, layer_work
from maxlm.plan.arithmetic.links import bandwidth, network_share
from maxlm.plan.arithmetic.state_bytes import definition
from maxlm.plan.result import Collective

_RING = {"all-gather": 1.0, "reduce-scatter": 1.0, "all-to-all": 1.0, "all-reduce": 2.0}


@dataclass
class _Traffic:
    """Collects collectives; those over one device send nothing."""

    job: Job
    found: list[Collective]

    def add(
        self,
        name: str,
        kind: str,
        axes: tuple[str, ...],
        payload: float,
        times: float,
        *,
        is_overlapped: bool = False,
    ) -> None:
        """One collective, `times` a step, of `payload` bytes as `Collective` defines them."""
        axes = tuple(axis for axis in axes if self.job.mesh[axis] > 1)
        size = self.job.size(*axes)
        if size == 1 or payload == 0 or times == 0:
            return
        total = payload * times
        wire = total if kind == "collective-permute" else total * _RING[kind] * (size - 1) / size
        speed, network = bandwidth(self.job, axes)
        seconds = wire / speed
        if network and self.job.chip.platform == "tpu":
            seconds, wire = network_share(self.job, total)
        self.found.append(
            Collective(
                name=name,
                kind=kind,
                axes=axes,
                size=size,
                times=max(1, round(times)),
                payload_bytes=total,
                wire_bytes=wire,
                seconds=seconds,
                is_overlapped=is_overlapped,
                network=network,
            )
        )


def collectives_of(job: Job) -> list[Collective]:
    """The collectives of a step, most wire bytes first."""
    traffic, habits = _Traffic(job, []), habits_of(job)
    _parameters(traffic, habits)
    for layer, count in Counter(layers_of(job.model)).items():
        rounds = job.stages.rounds if job.stages else 1
        times = count / job.mesh["stage"] * job.accumulation * job.ticks / rounds
        _layer(traffic, layer, times)
    _outside(traffic, habits)
    return sorted(traffic.found, key=lambda c: -c.wire_bytes)


def _parameters(traffic: _Traffic, habits: Habits) -> None:
    """Layers' parameters gathered for forward and backward, and their gradients added up."""
    job = traffic.job
    alone = job.mesh["replica"] == job.topology.num_devices
    for group, elements in _by_axes(job).items():
        payload = elements * itemsize(job)
        rounds = job.stages.rounds if job.stages else 1
        passes = job.accumulation * job.ticks / rounds
        traffic.add(
            "layers' parameters", "all-gather", group, payload, 2 * passes,
            is_overlapped=habits.gathers_overlap,
        )  # fmt: skip
        kind = "reduce-scatter" if habits.reduce_scatters else "all-reduce"
        traffic.add(
            "layers' gradients", kind, group, payload, passes,
            is_overlapped=habits.reductions_overlap,
        )  # fmt: skip
        # On a mesh of replicas alone they are added up once a step, in float32.
        shard = elements * (WIDE if alone else itemsize(job)) / job.size(*group)
        traffic.add(
            "gradients of replicas", "all-reduce", ("replica",), shard,
            1 if alone else passes,
            is_overlapped=job.chip.platform == "gpu" and habits.reductions_overlap,
        )  # fmt: skip


# Logical axes of a matrix that are gathered before it multiplies; each has one of them at most.
_GATHERED = ("embed", "expert_embed", "latent")


def _by_axes(job: Job) -> dict[tuple[str, ...], float]:
    """Elements of the layers' matrices on a device once gathered, by the axes that are gathered."""
    found: Counter[tuple[str, ...]] = Counter()
    for info in definition(job).parameters.values():
        if info.kind.value != "matrix":
            continue
        gathered = [TABLE[axis] for axis in info.axes if axis in _GATHERED]
        axes = gathered[0] if gathered else ()
        kept = [axis for axis in info.axes if axis not in _GATHERED]
        shards = 1
        for axis in kept:
            shards *= job.size(*TABLE[axis])
        found[axes] += info.size / shards  # type: ignore[assignment]
    return dict(found)


def _layer(traffic: _Traffic, layer: Layer, times: float) -> None:
    """Activations that a layer sends, `times` forward and backward."""
    job = traffic.job
    work = layer_work(job, layer)
    part = 1 / job.microbatches  # a tick's share of the rows
    stream = job.tokens * job.model.embed_dim * itemsize(job) * part
    repeated = {m.name for m in work.repeated}
    sums = 4 + ("attention_projected" in repeated)
    traffic.add("activations of heads and MLP", "all-reduce", ("tensor",), stream, sums * times)
    if job.mesh["context"] > 1:
        _context(traffic, work, part, times)
    if layer.has_experts:
        traffic.add(
            "parts of experts' matrices", "all-to-all", TABLE["expert_embed"],
            _exchanged_parts(job), 3 * times,
        )  # fmt: skip
    if layer.has_experts and job.mesh["expert"] > 1:
        kept = work.kept_names
        again = kept is not None and "expert_rows" not in kept
        if job.rows_travel:
            rows = stream * job.model.experts_per_token
            traffic.add("rows of experts", "all-to-all", ("expert",), rows, (4 + again) * times)
            return
        whole = stream * job.mesh["expert"]
        traffic.add("tokens to all experts", "all-gather", ("expert",), whole, (2 + again) * times)
        traffic.add("sums of experts", "reduce-scatter", ("expert",), whole, 2 * times)


def _exchanged_parts(job: Job) -> float:
    """Bytes of experts' matrices that a device gives others before they are gathered (maxlm/kernels/experts/dispatch.py)."""
    model, shards = job.model, job.size(*TABLE["expert_embed"])
    assert model.num_experts and model.expert_mlp_dim
    experts = model.num_experts // job.mesh["expert"]
    if experts % shards:
        return 0.0
    width = model.expert_mlp_dim / job.mesh["tensor"] * (2 + model.mlp.is_gated)
    return experts * width * model.embed_dim / shards * itemsize(job)


def _context(traffic: _Traffic, work: LayerWork, part: float, times: float) -> None:
    """Keys and values of a layer, or its heads."""
    again = 1 + work.attention_runs_again
    job, model, axes = traffic.job, traffic.job.model, ("context",)
    assert model.num_kv_heads and model.head_dim
    count, tensor = job.mesh["context"], job.mesh["tensor"]
    # A head's key and value; its query and output are as wide.
    head = job.tokens * part * (model.head_dim + value_dim(model)) * itemsize(job)
    keys = head * model.num_kv_heads / tensor
    method = job.context_method
    if method is ContextAttention.RING:
        forward = (count - 1) * (again + 1)  # the backward pass turns them around once more
        traffic.add(
            "keys and values around the ring", "collective-permute", axes, keys, forward * times,
            is_overlapped=True,
        )  # fmt: skip
        sums = keys * WIDE / itemsize(job)
        traffic.add(
            "their gradients", "collective-permute", axes, sums, count * times, is_overlapped=True
        )
    elif method is ContextAttention.ULYSSES:
        _, kv = heads_of_device(model, job.abstract_mesh)
        moved = head * (model.num_heads / tensor + kv * count)
        again_sent = job.tokens * part * _sent_again(job, work) * itemsize(job)
        traffic.add("tokens for heads, again", "all-to-all", axes, again_sent, times)
        traffic.add("tokens for heads", "all-to-all", axes, moved, (again + 1) * times)
    else:
        traffic.add("keys and values", "all-gather", axes, keys * count, (again + 1) * times)
        traffic.add("their gradients", "reduce-scatter", axes, keys * count, times)


def _sent_again(job: Job, work: LayerWork) -> float:
    """Numbers a token that ulysses sends again in the backward pass where attention itself does not run again."""
    # A pipeline of several rounds keeps matmuls and what has a name, not all.
    is_all_kept = work.kept_names is None and job.config.parallel.pipeline_rounds == 1
    if is_all_kept or work.attention_runs_again:
        return 0.0
    model = job.model
    assert model.num_kv_heads and model.head_dim
    heads, given = (n / job.mesh["tensor"] for n in (model.num_heads, model.num_kv_heads))
    keys = heads_of_device(model, job.abstract_mesh)[1] * job.mesh["context"]
    # The output, for the gradient of the projection behind it. What a norm reads is kept instead of what
    # was sent, and so are keys and values that go to several devices.
    numbers = heads * value_dim(model)
    if model.qk_norm:
        numbers += heads * model.head_dim
    if model.qk_norm or keys > given:
        numbers += keys * model.head_dim
    if keys > given:
        numbers += keys * value_dim(model)
    return numbers


def _outside(traffic: _Traffic, habits: Habits) -> None:
    """Embeddings, the output table, and what goes from stage to stage."""
    job, passes = traffic.job, traffic.job.accumulation
    size, width = itemsize(job), job.model.embed_dim
    outer = job.outer_tokens * width * size
    table = padded_vocab(job.model) / job.mesh["tensor"] * width
    shards = TABLE["table_embed"]
    traffic.add("looked-up rows", "all-to-all", shards, outer, 2 * passes)
    traffic.add("output table", "all-gather", shards, table * size, passes)
    kind = "reduce-scatter" if habits.reduce_scatters else "all-reduce"
    wide = table * (WIDE if habits.reduce_scatters else size)
    traffic.add("output table's gradient", kind, shards, wide, passes)
    own = table / job.size(*shards) * WIDE
    # The table's gradient as looked up, and where the output has one of its own that too.
    tables = 1 if job.model.tie_embeddings else 2
    traffic.add("tables' gradients of replicas", "all-reduce", ("replica",), own, tables * passes)
    traffic.add("gradient of the last hidden state", "all-reduce", ("tensor",), outer, passes)
    stream = job.tokens * width * size / job.microbatches
    moves = 4 * passes * job.ticks  # a microbatch and one that waits, forward and backward
    traffic.add("microbatches", "collective-permute", ("stage",), stream, moves)
