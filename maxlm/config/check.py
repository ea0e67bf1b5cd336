"""What can be wrong with a config: single values, and values that do not fit each other.

In comes plain data or a `RunConfig`; out go `Problem`s, each with the path of the option, so that
the caller can say where it was written.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Set
from dataclasses import dataclass
from typing import Any

from pydantic import ValidationError

from maxlm.config.check_experts import expert_problems, idle_expert_options
from maxlm.config.check_latent import latent_problems
from maxlm.config.check_rope import idle_rope_options, rope_problems
from maxlm.config.choices import (
    AttentionSpan,
    NormKind,
    OptimizerKind,
    PositionKind,
    ScheduleKind,
)
from maxlm.config.document import describe
from maxlm.config.mesh_axes import MESH_AXES
from maxlm.config.options import DURATION_HELP, all_options, place_at
from maxlm.config.schema import DataConfig, Duration, ModelConfig, RunConfig
from maxlm.errors import ConfigError, did_you_mean

Path = tuple[str | int, ...]


@dataclass(frozen=True)
class Problem:
    """One mistake: the option's path (None when the message says where) and what is wrong."""

    path: Path | None
    message: str


def validate(plain: Any) -> tuple[RunConfig | None, list[Problem]]:
    """Turn plain data into a config, or say everything that is wrong with it."""
    try:
        # JSON mode with strict=True: choices are read from their names, but no text becomes a
        # number and no number a truth value.
        return RunConfig.model_validate_json(json.dumps(plain), strict=True), []
    except ValidationError as error:
        problems = [_problem(e) for e in error.errors(include_url=False)]
        return None, problems


def check_config(config: RunConfig, explicit: Set[str] = frozenset()) -> list[Problem]:
    """Problems between values.

    Args:
        config: a config whose single values are fine.
        explicit: keys set on the command line; those that would have no effect are problems.
    """
    return [
        *_check_heads(config.model),
        *_check_attention(config.model),
        *_check_positions(config),
        *(Problem(path, message) for path, message in rope_problems(config.model)),
        *(Problem(path, message) for path, message in latent_problems(config.model)),
        *_check_names(config),
        *_check_phases(config.data),
        *_check_batch(config),
        *_check_durations(config),
        *_check_mesh(config),
        *(Problem(path, message) for path, message in expert_problems(config)),
        *_check_effect(config, explicit),
    ]


def require_sound(config: RunConfig) -> None:
    """Raise ConfigError with all problems of a config made in Python."""
    problems = check_config(config)
    if problems:
        lines = [f"{'.'.join(map(str, p.path or ()))}: {p.message}" for p in problems]
        raise ConfigError("\n".join(lines))


def _problem(error: Any) -> Problem:
    path: Path = tuple(part for part in error["loc"] if part != "[key]")
    kind, value = error["type"], error["input"]
    if kind == "extra_forbidden":
        return Problem(path, f"unknown option{_suggest(path)}")
    if kind == "missing":
        return Problem(path, "is required and not set")
    if kind == "string_pattern_mismatch":
        return Problem(
            path, f"{describe(value)} may have only letters, digits, '.', '_' and '-', "
            "and begins with a letter or digit"
        )  # fmt: skip
    if kind == "value_error":
        return Problem(path, f"{describe(value)}: {DURATION_HELP}")
    place = place_at(path)
    allowed = place.allowed() if place else error["msg"]
    if place is not None and place.section is not None:
        allowed = f"a section with the keys {', '.join(place.section.model_fields)}"
    hint = ""
    if kind == "enum":
        hint = did_you_mean(str(value), allowed.removesuffix(" or null").split(", "))
    elif isinstance(value, str) and "number" in allowed and _looks_numeric(value):
        hint = "; remove the quotes"
    elif isinstance(value, (int, float)) and allowed.startswith("text"):
        hint = "; put it in quotes"
    return Problem(path, f"{describe(value)} does not fit; allowed: {allowed}{hint}")


def _suggest(path: Path) -> str:
    """The option that was probably meant: one beside it, or of the same name elsewhere."""
    name, parent = str(path[-1]), place_at(path[:-1])
    siblings = parent.section.model_fields if parent and parent.section else ()
    near = did_you_mean(name, siblings)
    if near:
        return near
    last = {option.key.rsplit(".", 1)[-1]: option.key for option in reversed(all_options())}
    if name in last:
        return f" (did you mean '{last[name]}'?)"
    return f"; there are: {', '.join(siblings)}" if siblings else ""


def _looks_numeric(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def _check_heads(model: ModelConfig) -> Iterator[Problem]:
    if model.head_dim is None and model.embed_dim % model.num_heads:
        nearest = sorted(_divisors(model.embed_dim), key=lambda n: abs(n - model.num_heads))[:2]
        yield Problem(
            ("model", "embed_dim"),
            f"{model.embed_dim} does not divide over num_heads {model.num_heads} "
            f"({model.embed_dim} = {model.num_heads} × {model.embed_dim // model.num_heads} + "
            f"{model.embed_dim % model.num_heads}): set model.head_dim, or use "
            f"{' or '.join(map(str, sorted(nearest)))} heads",
        )
    kv_heads = model.num_kv_heads
    if kv_heads and model.num_heads % kv_heads:
        yield Problem(
            ("model", "num_kv_heads"),
            f"num_heads {model.num_heads} is no multiple of num_kv_heads {kv_heads}: "
            f"use one of {', '.join(map(str, _divisors(model.num_heads)))}",
        )
    head_dim = model.head_dim or model.embed_dim // model.num_heads
    turns_heads = model.positions is PositionKind.ROPE and model.kv_latent_dim is None
    if turns_heads and head_dim % 2:
        yield Problem(
            ("model", "head_dim"),
            f"{head_dim} is odd, but rope turns pairs of dims: use an even head_dim",
        )


def _check_attention(model: ModelConfig) -> Iterator[Problem]:
    has_local = AttentionSpan.LOCAL in model.attention_pattern
    if has_local and model.attention_window is None:
        yield Problem(
            ("model", "attention_pattern"),
            "has local layers, but model.attention_window is not set: say how many tokens they see",
        )
    if model.attention_window is not None and not has_local:
        yield Problem(
            ("model", "attention_window"),
            f"is {model.attention_window}, but no layer is local: set model.attention_pattern, "
            "such as [local, global], or remove the window",
        )
    if model.norm_bias and model.norm is NormKind.RMS:
        yield Problem(
            ("model", "norm_bias"),
            "an rms norm has no bias: set model.norm to layer, or norm_bias to false",
        )


def _check_positions(config: RunConfig) -> Iterator[Problem]:
    model = config.model
    if model.positions is not PositionKind.LEARNED or model.max_length is None:
        return
    lengths: dict[Path, int | None] = {("data", "length"): config.data.length}
    for index, phase in enumerate(config.data.phases):
        lengths["data", "phases", index, "length"] = phase.length
    for name, evaluation in config.eval.sets.items():
        lengths["eval", "sets", name, "length"] = evaluation.length
    for path, length in lengths.items():
        if length and length > model.max_length:
            yield Problem(
                path,
                f"{length} is longer than the {model.max_length} learned positions "
                "(model.max_length): shorten it or raise model.max_length",
            )


def _check_names(config: RunConfig) -> Iterator[Problem]:
    groups: list[tuple[Path, Any]] = [
        (("data", "mixture"), config.data.mixture),
        (("eval", "sets"), config.eval.sets),
    ]
    for path, named in groups:
        for name in named:
            if not name or not all(c.isalnum() or c in "_-" for c in name):
                yield Problem(
                    (*path, name),
                    f"the name '{name}' may have only letters, digits, '_' and '-'",
                )


def _check_phases(data: DataConfig) -> Iterator[Problem]:
    own = {name: source.weight for name, source in data.mixture.items()}
    for index, phase in enumerate(data.phases):
        path: Path = ("data", "phases", index)
        if phase.duration is None and index < len(data.phases) - 1:
            yield Problem(
                (*path, "duration"), "is open, but only the last phase may leave it so: set it"
            )
        for name, weight in phase.weights.items():
            if name not in own:
                known = ", ".join(own) or "no sources"
                yield Problem(
                    (*path, "weights", name),
                    f"data.mixture has no source '{name}'{did_you_mean(name, own)}; "
                    f"it has: {known}",
                )
            if not 0 <= weight < float("inf"):
                yield Problem((*path, "weights", name), f"{weight} does not fit; allowed: ≥ 0")
        if own and not any({**own, **phase.weights}.values()):
            yield Problem((*path, "weights"), "leaves every source out: give one more than 0")


def _check_batch(config: RunConfig) -> Iterator[Problem]:
    accumulation = config.train.accumulation
    sizes: dict[Path, int | None] = {("data", "batch_size"): config.data.batch_size}
    for index, phase in enumerate(config.data.phases):
        sizes["data", "phases", index, "batch_size"] = phase.batch_size
    for path, size in sizes.items():
        if size and size % accumulation:
            below = size // accumulation * accumulation
            nearest = f"{below} and {below + accumulation}" if below else f"{accumulation}"
            yield Problem(
                path,
                f"{size} does not divide into train.accumulation {accumulation} micro-batches: "
                f"nearest are {nearest}",
            )


def _check_durations(config: RunConfig) -> Iterator[Problem]:
    positive: dict[Path, Duration | None] = {
        ("train", "duration"): config.train.duration,
        ("checkpoint", "every"): config.checkpoint.every,
        ("checkpoint", "keep_every"): config.checkpoint.keep_every,
        ("eval", "every"): config.eval.every,
        ("logging", "every"): config.logging.every,
    }
    for index, phase in enumerate(config.data.phases):
        positive["data", "phases", index, "duration"] = phase.duration
    for path, duration in positive.items():
        if duration is not None and duration.amount <= 0:
            yield Problem(path, f"'{duration}' does not fit; allowed: more than 0")
    total, warmup = config.train.duration, config.schedule.warmup
    # A branch's duration holds its parent's steps too; `resolve` checks its own.
    own = config.train.branch_from is None
    if own and total and warmup and total.unit == warmup.unit:
        yield from schedule_problem(config, warmup.amount, total.amount, warmup.unit.value)


def schedule_problem(
    config: RunConfig, warmup: float, total: float, unit: str
) -> Iterator[Problem]:
    """Say so when warm-up and decay together are longer than training, all in one unit."""
    decay = config.schedule.decay_fraction if config.schedule.kind is ScheduleKind.WSD else 0.0
    if warmup + decay * total > total:
        decayed = f" + decay {decay:g} × {total:,g}" if decay else ""
        yield Problem(
            ("schedule", "warmup"),
            f"warm-up {warmup:,g}{decayed} = {warmup + decay * total:,g} {unit} is longer than "
            f"training, {total:,g} {unit}: warm-up can be at most {(1 - decay) * total:,g} {unit}",
        )


def _check_mesh(config: RunConfig) -> Iterator[Problem]:
    sizes = {axis: getattr(config.parallel, axis) for axis in MESH_AXES}
    for axis, size in sizes.items():
        if size == 0:
            yield Problem(
                ("parallel", axis), "0 does not fit; allowed: 1 or more, or -1 for what is left"
            )
    free = [axis for axis, size in sizes.items() if size == -1]
    if len(free) > 1:
        yield Problem(
            ("parallel", free[0]),
            f"{' and '.join(free)} are both -1, but only one axis can take what is left",
        )


def _check_effect(config: RunConfig, explicit: Set[str]) -> Iterator[Problem]:
    """An override that changes nothing is a mistake, where the same value in a preset is not."""
    model, schedule = config.model, config.schedule
    muon = config.optimizer.kind is OptimizerKind.MUON
    one_stage = config.parallel.stage == 1
    idle = {
        "parallel.pipeline_rounds": (one_stage, "parallel.stage is 1"),
        "parallel.microbatches": (one_stage, "parallel.stage is 1"),
        "optimizer.muon_learning_rate": (not muon, "optimizer.kind is adamw"),
        "optimizer.muon_momentum": (not muon, "optimizer.kind is adamw"),
        "optimizer.muon_iterations": (not muon, "optimizer.kind is adamw"),
        "schedule.decay_fraction": (
            schedule.kind is ScheduleKind.COSINE,
            "schedule.kind is cosine",
        ),
        "parallel.context_attention": (config.parallel.context == 1, "parallel.context is 1"),
        "model.qk_norm_width": (not model.qk_norm, "model.qk_norm is false"),
        **idle_rope_options(model),
        "model.max_length": (
            model.positions is not PositionKind.LEARNED,
            f"model.positions is {model.positions}",
        ),
        **idle_expert_options(config),
    }
    for key, (is_idle, because) in idle.items():
        if key in explicit and is_idle:
            yield Problem(tuple(key.split(".")), f"has no effect, because {because}")


def _divisors(number: int) -> list[int]:
    """Divisors up to 4,096: more heads than that no one means."""
    return [n for n in range(1, min(number, 4096) + 1) if number % n == 0]
