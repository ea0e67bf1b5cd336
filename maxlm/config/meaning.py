"""Which options say what a run computes, and which only how: the rule for continuing a run.

A run folder may be continued under another mesh, logging or evaluation; under another model, data,
optimizer or schedule it would be another run, and is refused with a readable difference.

The length of training counts as meaning: the schedule stretches over it, so a run that was to last
1,000 steps has decayed where one of 2,000 has not. To go on, branch from a checkpoint.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from maxlm.config.options import place_at
from maxlm.config.schema import Duration, RunConfig

MEANINGFUL_SECTIONS = ("model", "data", "optimizer", "schedule", "train")
# How, not what: these change a result by rounding at most.
MECHANICS = frozenset(
    {
        "data.workers",
        "data.prefetch",
        "train.accumulation",
        "train.loss_chunk",
        "train.deterministic",
    }
)
# Where null means "derived": a run keeps what was derived when it began.
DERIVABLE = frozenset(
    {
        "model.vocab_size",
        "model.num_kv_heads",
        "model.head_dim",
        "model.mlp_dim",
        "model.expert_mlp_dim",
        "model.max_length",
        "model.rope_context",
        "data.tokenizer",
        "data.batch_size",
        "optimizer.learning_rate",
        "schedule.warmup",
        "train.duration",
        "train.precision",
    }
)
# Of these, what a run that branches off another keeps of its parent; it counts its own length.
INHERITED = DERIVABLE - {
    "model.max_length",
    "model.rope_context",
    "schedule.warmup",
    "train.duration",
}


def meaning_diff(
    saved: Mapping[str, Any], current: RunConfig, origins: Mapping[str, str] | None = None
) -> list[str]:
    """Differences that change what a run computes; empty when it may be continued.

    Args:
        saved: the resolved config of the run, as read from its `config.yaml`.
        current: the config to continue under, resolved or not; what it leaves to be derived
            keeps the saved value and is no difference.
        origins: where current values were written, see `load_with_origins`.

    Returns:
        Lines such as `optimizer.learning_rate: saved 0.001, now 0.002 (my.yaml:7)`.
    """
    now = dict(_leaves(current.model_dump(mode="json"), ()))
    before = dict(_leaves(_complete(saved), ()))
    lines = []
    for path in [*before, *(path for path in now if path not in before)]:
        key = ".".join(path)
        if not is_meaningful(key):
            continue
        old, new = before.get(path, _ABSENT), now.get(path, _ABSENT)
        if _same(path, old, new) or (new is None and key in DERIVABLE):
            continue
        if new is _ABSENT and place_at(path) is None:
            lines.append(f"{key}: saved {_shown(old)}, but this version has no such option")
            continue
        where = f" ({origins[key]})" if origins and key in origins else ""
        lines.append(f"{key}: saved {_shown(old)}, now {_shown(new)}{where}")
    if any(line.startswith("train.duration:") for line in lines):
        lines.append(
            "the schedule stretches over train.duration: to train longer, start a new run from a "
            "checkpoint of this one with --branch-from"
        )
    return lines


def keep_derived(
    saved: Mapping[str, Any], current: RunConfig, keys: frozenset[str] = DERIVABLE
) -> RunConfig:
    """`current` with what it leaves to be derived, of `keys`, taken from the saved run.

    Rules read the number of devices, the platform and the length of training; a run that continues
    must not get another batch, learning rate or precision from them.
    """
    sections: dict[str, Any] = {}
    for key in sorted(keys):
        section, name = key.split(".")
        value = (saved.get(section) or {}).get(name)
        if value is not None and getattr(getattr(current, section), name) is None:
            sections.setdefault(section, {})[name] = value
    plain = current.model_dump(mode="json")
    for section, values in sections.items():
        plain[section] |= values
    return RunConfig.model_validate(plain)


def is_meaningful(key: str) -> bool:
    """Whether a dotted key says what a run computes."""
    return key.split(".")[0] in MEANINGFUL_SECTIONS and key not in MECHANICS


_ABSENT = object()


def _complete(saved: Mapping[str, Any]) -> dict[str, Any]:
    """The saved config with the defaults of options that it does not know yet."""
    plain = RunConfig().model_dump(mode="json")
    for section, values in saved.items():
        if isinstance(values, Mapping) and isinstance(plain.get(section), dict):
            plain[section] = {**plain[section], **values}
        else:
            plain[section] = values
    return plain


def _leaves(plain: Any, path: tuple[str, ...]) -> Iterator[tuple[tuple[str, ...], Any]]:
    """Leaves by path; a list of sections counts by index, a list of values is one leaf."""
    if isinstance(plain, Mapping) and plain:
        for key, value in plain.items():
            yield from _leaves(value, (*path, str(key)))
    elif isinstance(plain, list) and plain and isinstance(plain[0], Mapping):
        for index, value in enumerate(plain):
            yield from _leaves(value, (*path, str(index)))
    elif not (isinstance(plain, (Mapping, list)) and not plain):
        yield path, plain


def _same(path: tuple[str, ...], old: Any, new: Any) -> bool:
    place = place_at(path)
    if place is not None and place.core is Duration and None not in (old, new):
        return _duration(old) == _duration(new)
    return bool(old == new)


def _duration(value: Any) -> Any:
    from maxlm.config.duration import parse_duration

    try:
        return parse_duration(value)
    except ValueError:
        return value


def _shown(value: Any) -> str:
    if value is _ABSENT:
        return "not there"
    return (
        "null" if value is None else str(value).lower() if isinstance(value, bool) else f"{value}"
    )
