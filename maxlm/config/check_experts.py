"""What can be wrong with the options of experts; yields the path of an option and what is wrong."""

from __future__ import annotations

from collections.abc import Iterator

from maxlm.config.expert_layers import layers_with_experts
from maxlm.config.schema import ExpertMatmul, ModelConfig, RouterScoring, RunConfig

# Options of `model` that only experts read.
EXPERT_OPTIONS = (
    "experts_per_token",
    "expert_mlp_dim",
    "shared_experts",
    "dense_layers",
    "expert_every",
    "router_scoring",
    "router_logit_bias",
    "router_groups",
    "router_groups_per_token",
    "router_normalize",
    "router_scale",
    "router_bias_rate",
    "load_balance_loss",
    "router_z_loss",
    "capacity_factor",
)

Found = Iterator[tuple[tuple[str, str], str]]


def expert_problems(config: RunConfig) -> Found:
    """Experts that a token cannot visit, layers without any, and a mesh that they do not divide."""
    model, experts = config.model, config.model.num_experts
    if experts is None:
        return
    if model.experts_per_token > experts:
        yield (
            ("model", "experts_per_token"),
            f"a token cannot visit {model.experts_per_token} of {experts} experts "
            f"(model.num_experts): use at most {experts}",
        )
    if not any(layers_with_experts(model)):
        yield (
            ("model", "num_experts"),
            f"no layer has experts: of {model.num_layers} layers, the first {model.dense_layers} "
            f"are dense (dense_layers), and of the others one in {model.expert_every} has experts "
            "(expert_every)",
        )
    yield from _group_problems(model, experts)
    shards = config.parallel.expert
    if shards > 1 and experts % shards:
        yield (
            ("parallel", "expert"),
            f"{experts} experts (model.num_experts) do not divide over expert {shards} "
            f"({experts} = {shards} × {experts // shards} + {experts % shards}): nearest are "
            f"{_nearest(experts, shards)}",
        )


def idle_expert_options(config: RunConfig) -> dict[str, tuple[bool, str]]:
    """Options without effect in this config, and because of what."""
    dense = config.model.num_experts is None
    because = "model.num_experts is not set: the model is dense"
    idle = {f"model.{name}": (dense, because) for name in EXPERT_OPTIONS}
    capacity = config.model.capacity_factor is not None
    forced = config.parallel.expert_matmul is not ExpertMatmul.AUTO
    idle["parallel.expert_matmul"] = (
        (dense or capacity) and forced,
        because if dense else "with model.capacity_factor every expert has as many tokens",
    )
    idle["parallel.expert_exchange"] = (
        dense or capacity or config.parallel.expert == 1,
        because
        if dense
        else "with model.capacity_factor a fixed number of rows travels"
        if capacity
        else "parallel.expert is 1: experts do not lie over devices",
    )
    return idle


def _group_problems(model: ModelConfig, experts: int) -> Found:
    """Groups that experts do not divide into, or in which a token finds too few experts."""
    groups, visited = model.router_groups, model.router_groups_per_token
    path = ("model", "router_groups")
    if groups == visited == 1:
        return
    if experts % groups:
        yield (
            path,
            f"{experts} experts (model.num_experts) do not divide into {groups} groups: nearest are "
            f"{_nearest(experts, groups)}",
        )
        return
    size = experts // groups
    if visited > groups or model.experts_per_token > visited * size:
        yield (
            ("model", "router_groups_per_token"),
            f"in {visited} of {groups} groups (model.router_groups) of {size} experts a token cannot "
            f"visit {model.experts_per_token} (experts_per_token): use {-(-model.experts_per_token // size)}"
            f" to {groups} groups",
        )
    if groups > 1 and size < 2 and model.router_scoring is RouterScoring.SIGMOID:
        yield path, f"a group of {size} expert has no best two, by which sigmoid scores choose it"


def _nearest(experts: int, parts: int) -> str:
    """The numbers of parts next to one that experts do not divide into."""
    fitting = [n for n in range(1, experts + 1) if experts % n == 0]
    below, above = ([n for n in fitting if n < parts], [n for n in fitting if n > parts])
    return " and ".join(map(str, [*below[-1:], *above[:1]]))
