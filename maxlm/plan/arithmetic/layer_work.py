"""What one block of the model multiplies, keeps and touches on a device, for one pass over a micro-batch.

In: a `Job` and the kind of a layer; out: FLOPs of the forward matmuls and of those that run again,
bytes that stay for the backward pass, and bytes that element-wise operations move. The names are
those of `maxlm/model/rematerialization.py`, which decides what a policy keeps.
"""

from __future__ import annotations

from dataclasses import dataclass

from maxlm.config.choices import AttentionSpan, NormPlacement, Rematerialization
from maxlm.config.expert_layers import Layer
from maxlm.config.head_widths import value_dim
from maxlm.model.rematerialization import ATTENTION_NAMES, BLOCK_INPUT, MATMUL_NAMES
from maxlm.plan.arithmetic.job import Job

WIDE = 4  # bytes of float32

# What a policy keeps by name; None: everything. Those that offload keep it in the host's memory.
_ATTENTION = frozenset((BLOCK_INPUT, *ATTENTION_NAMES))
_KEPT: dict[Rematerialization, frozenset[str] | None] = {
    Rematerialization.NONE: None,
    Rematerialization.MATMULS: _ATTENTION | frozenset(MATMUL_NAMES),
    Rematerialization.ATTENTION: _ATTENTION,
    Rematerialization.FULL: frozenset((BLOCK_INPUT,)),
    Rematerialization.OFFLOAD_ATTENTION: _ATTENTION,
    Rematerialization.OFFLOAD_INPUTS: frozenset((BLOCK_INPUT,)),
}
OFFLOADS = (Rematerialization.OFFLOAD_ATTENTION, Rematerialization.OFFLOAD_INPUTS)


@dataclass(frozen=True)
class Matmul:
    """A projection of tokens.

    Attributes:
        name: its result, as rematerialisation calls it; empty: none.
        rows: tokens (or visits to experts).
        inputs: width that it contracts, on the device.
        outputs: width of its result, on the device.
        needed: whether the backward pass reads the result, so that it runs again if it is not kept.
        grouped: whether every expert multiplies rows of its own, in a kernel on TPUs.
    """

    name: str
    rows: float
    inputs: float
    outputs: float
    needed: bool = True
    grouped: bool = False

    @property
    def flops(self) -> float:
        """2 a multiply-add."""
        return 2.0 * self.rows * self.inputs * self.outputs


@dataclass(frozen=True)
class LayerWork:
    """Of one block.

    Attributes:
        matmuls: of the forward pass.
        widths: elements that a policy can keep, by name.
        inner: elements of every intermediate, as the policy `none` keeps them.
        rows: elements of the rows of experts, in the residual width; 0: there are none.
        seen: tokens that one attends to at most.
        policy: what the backward pass computes again.
        itemsize: bytes of an element.
    """

    matmuls: tuple[Matmul, ...]
    widths: dict[str, float]
    inner: float
    rows: float
    seen: int
    policy: Rematerialization
    itemsize: int

    @property
    def kept_names(self) -> frozenset[str] | None:
        """Of the policy; None: everything."""
        return _KEPT[self.policy]

    @property
    def forward_flops(self) -> float:
        """Of the matmuls."""
        return sum(m.flops for m in self.matmuls)

    @property
    def repeated(self) -> list[Matmul]:
        """Matmuls that the backward pass runs again."""
        kept = self.kept_names
        if kept is None:
            return []
        return [m for m in self.matmuls if m.needed and m.name not in kept]

    @property
    def attention_runs_again(self) -> bool:
        """Whether the kernel's residuals are not kept."""
        kept = self.kept_names
        return kept is not None and "attention_out" not in kept

    @property
    def kept_bytes(self) -> float:
        """For the backward pass, wherever they are kept."""
        kept = self.kept_names
        if kept is None:
            return self.inner * self.itemsize
        return sum(
            elements * (WIDE if name == "attention_lse" else self.itemsize)
            for name, elements in self.widths.items()
            if name in kept
        )


def layer_work(job: Job, layer: Layer) -> LayerWork:
    """The work of a block of this kind on one device, for one micro-batch."""
    model, tensor = job.model, job.mesh["tensor"]
    assert model.num_kv_heads and model.head_dim
    tokens, embed = float(job.tokens), model.embed_dim
    query = model.num_heads * model.head_dim / tensor
    key = model.num_kv_heads * model.head_dim / tensor
    value, out = (n * value_dim(model) / tensor for n in (model.num_kv_heads, model.num_heads))
    post = model.norm_placement is not NormPlacement.PRE
    lanes, value_lanes = _lanes(job, model.head_dim), _lanes(job, value_dim(model))
    sources: list[tuple[str, float, float]]
    sources = [("query", embed, query), ("key", embed, key), ("value", embed, value)]
    if model.kv_latent_dim is not None:
        sources = _latent_maps(job, query, key, value)
    matmuls = [Matmul(name, tokens, width, made) for name, width, made in sources]
    matmuls.append(Matmul("attention_projected", tokens, out, embed))
    widths = {
        BLOCK_INPUT: tokens * embed,
        "query": tokens * query * lanes,
        "key": tokens * key * lanes,
        "value": tokens * value * value_lanes,
        "attention_out": tokens * out * value_lanes,
        "attention_lse": tokens * model.num_heads / tensor,
        "attention_projected": tokens * embed,
    }
    mlp, mlp_widths, hidden, rows = _mlp(job, layer, tokens, post)
    widths |= mlp_widths
    # Beside what has a name: what norms, rotations and activations keep, some of it in float32. Found
    # in three compiled programs: docs/memory.md, `none` against `matmuls`, and two small ones; of experts in
    # qwen3-30b-a3b's.
    inner = 8 * tokens * embed + 2 * tokens * (query + key) * lanes + 4 * hidden
    inner += sum(widths.values()) + 8 * rows
    local = layer.span is AttentionSpan.LOCAL and model.attention_window
    seen = min(job.length, model.attention_window or job.length) if local else job.length
    return LayerWork(tuple(matmuls + mlp), widths, inner, rows, seen, job.policy, itemsize(job))


def _latent_maps(
    job: Job, query: float, key: float, value: float
) -> list[tuple[str, float, float]]:
    """Name, inputs and outputs of the maps into latents, which no policy keeps, and out of them."""
    model, embed = job.model, float(job.model.embed_dim)
    latent, rope, queries = model.kv_latent_dim, model.latent_rope_dim, model.query_latent_dim
    assert model.head_dim and latent and rope
    maps = [("query_latent", embed, float(queries))] if queries else []
    maps += [("query", float(queries or embed), query), ("latent", embed, float(latent + rope))]
    unturned = key * (1 - rope / model.head_dim)
    return [*maps, ("key", float(latent), unturned), ("value", float(latent), value)]


def itemsize(job: Job) -> int:
    """Bytes of an activation's element."""
    return 2 if job.config.train.precision == "bfloat16" else WIDE


def _mlp(
    job: Job, layer: Layer, tokens: float, post: bool
) -> tuple[list[Matmul], dict[str, float], float, float]:
    """Matmuls of the MLP or the experts, what they can keep, elements of the hidden width and of experts' rows."""
    model, tensor, embed = job.model, job.mesh["tensor"], job.model.embed_dim
    gated = model.mlp.is_gated
    if not layer.has_experts:
        assert model.mlp_dim
        width = model.mlp_dim / tensor
        matmuls = _projections(tokens, embed, width, gated, post)
        hidden = tokens * width
        widths = {"mlp_up": hidden} | ({"mlp_gate": hidden} if gated else {})
        return matmuls, widths | ({"mlp_projected": tokens * embed} if post else {}), hidden, 0.0
    assert model.num_experts and model.expert_mlp_dim
    width = model.expert_mlp_dim / tensor
    visits = tokens * model.experts_per_token  # on average: as many come as go
    matmuls = [Matmul("router_logits", tokens, embed, model.num_experts)]
    # With a capacity the scores multiply the output, whose product with its gradient is theirs.
    has_places = model.capacity_factor is not None
    multiplied = visits * (model.capacity_factor or 1.0)
    needed, grouped = post or has_places, not has_places
    matmuls += _projections(multiplied, embed, width, gated, needed, grouped=grouped)
    # Buffers hold the worst case: every token of the axis visits experts of this device.
    expert = job.mesh["expert"]
    most = min(model.experts_per_token, model.num_experts // expert)
    rows = tokens * expert * most if expert > 1 else visits
    if model.capacity_factor is not None:
        rows = visits * model.capacity_factor
    hidden = rows * width
    widths = {"router_logits": tokens * model.num_experts, "mlp_up": hidden}
    widths |= {"mlp_gate": hidden} if gated else {}
    if has_places:
        widths |= {"expert_rows": rows * embed, "mlp_projected": rows * embed}
    elif expert > 1:
        # Of tokens that came whole, rows are made again.
        widths["expert_rows"] = (rows if job.rows_travel else tokens * expert) * embed
    if post:
        widths["mlp_projected"] = widths.get("mlp_projected", 0.0) + tokens * embed
    if model.shared_experts:
        shared = model.shared_experts * width
        matmuls += _projections(tokens, embed, shared, gated, post)
        hidden += tokens * shared
        for name in ("mlp_up", "mlp_gate")[: 1 + gated]:
            widths[name] += tokens * shared
    return matmuls, widths, hidden, rows * embed


def _projections(
    rows: float, embed: float, width: float, gated: bool, post: bool, *, grouped: bool = False
) -> list[Matmul]:
    up = [Matmul("mlp_gate", rows, embed, width, grouped=grouped)] if gated else []
    up.append(Matmul("mlp_up", rows, embed, width, grouped=grouped))
    return [*up, Matmul("mlp_projected", rows, width, embed, needed=post, grouped=grouped)]


def _lanes(job: Job, head_dim: int) -> float:
    """By how much a TPU's registers of 128 lanes widen a head in memory."""
    return -(-head_dim // 128) * 128 / head_dim if job.chip.platform == "tpu" else 1.0
