"""Values that the user left open, filled in by stated rules: the one dial.

In come a config and facts about the model, the data and the devices; out goes the config with every
open value set, and for each the rule that set it. Nothing here imports jax.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from maxlm.config.check import require_sound, schedule_problem
from maxlm.config.choices import Precision
from maxlm.config.derive_model import Derived, longest_length, model_values
from maxlm.config.derive_model import resolve_model as resolve_model
from maxlm.config.duration import Duration, DurationUnit, to_steps
from maxlm.config.mesh_axes import MESH_AXES, ROW_AXES
from maxlm.config.scaling_laws import (
    MAX_LEARNING_RATE,
    STUDIED_PARAMETERS,
    STUDIED_TOKENS,
    outside,
    step_law_batch_tokens,
    step_law_learning_rate,
)
from maxlm.config.schema import ParallelConfig, RunConfig
from maxlm.errors import ConfigError

TOKENS_PER_PARAMETER = 20
MAX_EPOCHS = 4
# Above this many blocks an unrolled program takes long to compile.
MAX_UNROLLED_LAYERS = 8
# What a chunk's logits may take on a TPU or GPU; a thousand tokens keep its matmuls busy.
LOGITS_BYTES = 512 << 20


@dataclass(frozen=True)
class Facts:
    """What the rules need to know besides the config.

    Attributes:
        parameters: of the resolved model, vocabulary padding not counted.
        non_embedding_parameters: without tables and output projection.
        vocab_size: of the tokenizer.
        train_tokens: tokens of the training sources read once; None when the data is not known.
        num_devices: over all processes.
        platform: `cpu`, `gpu` or `tpu`.
        data_shards: over how many the batch is split; by default from the config's mesh.
    """

    parameters: int
    non_embedding_parameters: int
    vocab_size: int
    train_tokens: int | None
    num_devices: int
    platform: str
    data_shards: int | None = None


@dataclass(frozen=True)
class Resolved:
    """A config without open values, the rules that closed them, and the length of training.

    Attributes:
        config: the config; durations that the user gave keep their unit.
        derived: what was set by a rule, in the order of the schema.
        total_steps: steps of the run (the data's timeline rounds each phase by itself).
        total_tokens: positions that the run reads.
    """

    config: RunConfig
    derived: list[Derived]
    total_steps: int
    total_tokens: int


def resolve(config: RunConfig, facts: Facts) -> Resolved:
    """Fill in every open value of a config.

    Args:
        config: as loaded.
        facts: counted on `resolve_model(config.model, …)`.

    Raises:
        ConfigError: values that do not fit each other, such as warm-up longer than training.
    """
    require_sound(config)
    rules = _Rules(config, facts)
    rules.model()
    rules.budget()
    rules.batch()
    rules.steps()
    rules.learning_rate()
    rules.warmup()
    rules.intervals()
    rules.execution()
    resolved = _with_values(config, {d.key: d.value for d in rules.derived})
    require_sound(resolved)  # what was given against what was derived
    warmup = rules.count(resolved.schedule.warmup)
    for problem in schedule_problem(resolved, warmup, rules.own_steps, "steps"):
        raise ConfigError(f"schedule.warmup: {problem.message}")
    return Resolved(resolved, rules.derived, rules.total_steps, round(rules.tokens))


def data_shard_count(parallel: ParallelConfig, num_devices: int) -> int:
    """Shards of the batch over the axes of its rows, with -1 taking what is left of the devices."""
    sizes = {axis: getattr(parallel, axis) for axis in MESH_AXES}
    fixed = math.prod(size for size in sizes.values() if size > 0)
    left = max(1, num_devices // fixed)
    sizes = {axis: left if size == -1 else size for axis, size in sizes.items()}
    return math.prod(sizes[axis] for axis in ROW_AXES)


class _Rules:
    """The rules in their order; each reads what those before it set."""

    def __init__(self, config: RunConfig, facts: Facts):
        self.config = config
        self.facts = facts
        self.derived: list[Derived] = []
        self.tokens = 0.0
        self.total_steps = 0
        self.batch_size = 0
        # A branch's schedule and intervals follow its own length, from the branch point on.
        point = (config.train.branch_from or "").rpartition("@")[2]
        self.start_step = int(point) if point.isdecimal() else 0
        self.own_steps = 0

    def count(self, duration: Duration | None) -> int:
        """Steps of a duration, by the batch and length of the run's first phase of its own."""
        if duration is None:
            return 0
        first, past = None, self.start_step
        for phase in self.config.data.phases:  # a branch's begin with its parent's, in steps
            if past <= 0:
                first = phase
                break
            past -= int(phase.duration.amount) if phase.duration else past
        size = (first and first.batch_size) or self.batch_size
        length = (first and first.length) or self.config.data.length
        return to_steps(
            duration,
            tokens_per_step=size * length,
            examples_per_step=size,
            tokens_per_epoch=self.facts.train_tokens,
        )

    def model(self) -> None:
        """What `resolve_model` fills in."""
        length = longest_length(self.config.data)
        resolve_model(self.config.model, vocab_size=self.facts.vocab_size, length=length)
        for value in model_values(self.config.model, self.facts.vocab_size, length):
            self._set(f"model.{value.key}", value.value, value.rule)

    def budget(self) -> None:
        """Tokens of training, where something other than steps or examples says so."""
        config, facts = self.config, self.facts
        duration = config.train.duration
        phases = config.data.phases
        if duration is not None or (phases and phases[-1].duration is not None):
            return
        tokens = TOKENS_PER_PARAMETER * facts.parameters
        rule = (
            f"{TOKENS_PER_PARAMETER} tokens × {facts.parameters:,} parameters "
            "(Chinchilla, arXiv:2203.15556)"
        )
        if facts.train_tokens and tokens > MAX_EPOCHS * facts.train_tokens:
            tokens = MAX_EPOCHS * facts.train_tokens
            rule = (
                f"{MAX_EPOCHS} epochs of {facts.train_tokens:,} tokens, beyond which repeated "
                f"data helps little (arXiv:2305.16264); {rule} would be more"
            )
        self._set("train.duration", Duration(amount=tokens, unit=DurationUnit.TOKENS), rule)

    def batch(self) -> None:
        """Examples per step: the law's tokens as a power of two of examples."""
        config = self.config
        given = config.data.batch_size
        if given is not None:
            self.batch_size = given
            return
        tokens = self._tokens_without_batch()
        wanted = step_law_batch_tokens(tokens)
        shards = self.facts.data_shards or data_shard_count(config.parallel, self.facts.num_devices)
        shards *= config.train.accumulation
        # A power of two divides over any usual mesh, so that the batch, and with it the order of
        # the data, does not depend on the number of devices.
        power = 2 ** max(0, round(math.log2(wanted / config.data.length)))
        self.batch_size = math.ceil(power / shards) * shards
        rounded = f"; up to a multiple of {shards} shards" if self.batch_size != power else ""
        rule = (
            f"0.58 × {tokens:.3g}^0.571 = {wanted:,.0f} tokens (Step Law, arXiv:2503.04715) / "
            f"length {config.data.length}, to a power of two{rounded}"
            f"{outside('tokens', tokens, STUDIED_TOKENS)}"
        )
        self._set("data.batch_size", self.batch_size, rule)

    def steps(self) -> None:
        """Steps and tokens of the whole run, phase by phase."""
        data = self.config.data
        duration = self._value("train.duration", self.config.train.duration)
        steps = tokens = examples = 0
        for phase in data.phases:
            length, size = phase.length or data.length, phase.batch_size or self.batch_size
            if phase.duration is None:
                continue
            taken = to_steps(
                phase.duration,
                tokens_per_step=size * length,
                examples_per_step=size,
                tokens_per_epoch=self.facts.train_tokens,
            )
            steps, examples, tokens = (
                steps + taken,
                examples + taken * size,
                tokens + taken * size * length,
            )
        if not data.phases or data.phases[-1].duration is None:
            last = data.phases[-1] if data.phases else None
            length = (last and last.length) or data.length
            size = (last and last.batch_size) or self.batch_size
            left = self._left(duration, steps, examples, tokens)
            taken = to_steps(
                left,
                tokens_per_step=size * length,
                examples_per_step=size,
                tokens_per_epoch=self.facts.train_tokens,
            )
            steps, tokens = steps + taken, tokens + taken * size * length
        self.total_steps, self.tokens = max(1, steps), max(1, tokens)
        self.own_steps = max(1, self.total_steps - self.start_step)

    def learning_rate(self) -> None:
        """The law's peak, adjusted to a batch that is not the law's."""
        if self.config.optimizer.learning_rate is not None:
            return
        count = self.facts.non_embedding_parameters
        rate = step_law_learning_rate(count, self.tokens)
        rule = f"1.79 × {count:.3g}^-0.713 × {self.tokens:.3g}^0.307 (Step Law, arXiv:2503.04715)"
        if self.config.data.batch_size is not None:
            ratio = self.batch_size * self.config.data.length / step_law_batch_tokens(self.tokens)
            rate *= math.sqrt(ratio)
            rule += f" × √{ratio:.3g} of the law's batch (arXiv:2205.10330)"
        rule += outside("parameters", count, STUDIED_PARAMETERS)
        if rate > MAX_LEARNING_RATE:
            rule = f"2^-7, the largest that the law's study tried, below {rate:.2g} = {rule}"
            rate = MAX_LEARNING_RATE
        self._set("optimizer.learning_rate", float(f"{rate:.3g}"), rule)

    def warmup(self) -> None:
        """1% of training within bounds."""
        if self.config.schedule.warmup is None:
            steps = min(max(10, self.own_steps // 100), 2000, math.ceil(self.own_steps / 10))
            rule = f"1% of {self.own_steps:,} steps, between 10 and 2000, at most a tenth"
            self._set("schedule.warmup", _steps(steps), rule)

    def intervals(self) -> None:
        """How often to save, evaluate and log; a given number of epochs becomes tokens."""
        config, total = self.config, self.own_steps
        tenth, log = max(1, total // 10), max(1, min(10, total // 500))
        given = {
            "checkpoint.every": (config.checkpoint.every, min(tenth, 1000), "1/10 of training, at most 1000 steps"),
            "eval.every": (config.eval.every, tenth, "1/10 of training"),
            "logging.every": (config.logging.every, log, "1/500 of training, at most 10 steps"),
        }  # fmt: skip
        for key, (duration, steps, rule) in given.items():
            if duration is None:
                self._set(key, _steps(steps), rule)
        durations = {key: duration for key, (duration, _, _) in given.items()}
        durations["checkpoint.keep_every"] = config.checkpoint.keep_every
        durations["schedule.warmup"] = config.schedule.warmup
        for key, duration in durations.items():
            if duration is not None and duration.unit is DurationUnit.EPOCHS:
                if not self.facts.train_tokens:
                    raise ConfigError(f"{key}: '{duration}' needs the data to be known")
                tokens = duration.amount * self.facts.train_tokens
                value = Duration(amount=math.ceil(tokens), unit=DurationUnit.TOKENS)
                rule = f"{duration} of {self.facts.train_tokens:,} tokens"
                self._set(key, value, rule)

    def execution(self) -> None:
        """What depends on the hardware and changes no result but by rounding."""
        config, cpu = self.config, self.facts.platform == "cpu"
        if config.train.precision is None:
            value = Precision.FLOAT32 if cpu else Precision.BFLOAT16
            self._set("train.precision", value, f"on {self.facts.platform}")
        if config.train.loss_chunk is None:
            self._set("train.loss_chunk", *self._loss_chunk(cpu))
        layers = config.model.num_layers
        if config.parallel.scan_unroll is None:
            unrolled = cpu and layers <= MAX_UNROLLED_LAYERS
            rule = f"on {self.facts.platform}, {layers} blocks"
            self._set("parallel.scan_unroll", layers if unrolled else 1, rule)
        if config.parallel.cpu_devices is None:
            self._set("parallel.cpu_devices", 1, "one host device uses all cores")
        if config.eval.batch_size is None:
            self._set("eval.batch_size", self.batch_size, "the training batch")
        for name, evaluation in config.eval.sets.items():
            if evaluation.length is None:
                self._set(f"eval.sets.{name}.length", config.data.length, "the training length")

    def _loss_chunk(self, cpu: bool) -> tuple[int, str]:
        if cpu:
            return 512, "on cpu"
        vocab = self._value("model.vocab_size", self.config.model.vocab_size)
        fitting = 1 << (max(1, LOGITS_BYTES // (4 * vocab)).bit_length() - 1)
        rule = f"float32 logits of {vocab:,} in {LOGITS_BYTES >> 20} MiB a device, at most 4096"
        return min(4096, fitting), rule

    def _set(self, key: str, value: Any, rule: str) -> None:
        self.derived.append(Derived(key, value, rule))

    def _value(self, key: str, given: Any) -> Any:
        return next((d.value for d in self.derived if d.key == key), given)

    def _tokens_without_batch(self) -> float:
        """Tokens of training where the batch is still to be derived from them."""
        data = self.config.data
        duration = self._value("train.duration", self.config.train.duration)
        if duration is None:
            parts = [self._tokens_of(p.duration, p.length, p.batch_size) for p in data.phases]
            return max(1.0, sum(parts))
        return max(1.0, self._tokens_of(duration, None, None))

    def _tokens_of(
        self, duration: Duration | None, length: int | None, batch_size: int | None
    ) -> float:
        if duration is None:
            return 0.0
        length = length or self.config.data.length
        match duration.unit:
            case DurationUnit.TOKENS:
                return duration.amount
            case DurationUnit.EXAMPLES:
                return duration.amount * length
            case DurationUnit.EPOCHS:
                if not self.facts.train_tokens:
                    raise ConfigError(f"'{duration}' needs the data to be known")
                return duration.amount * self.facts.train_tokens
            case DurationUnit.STEPS:
                if batch_size is not None:
                    return duration.amount * batch_size * length
                # B = 0.58 · (steps · B)^0.571, solved for the tokens steps · B.
                return (0.58 * duration.amount) ** (1 / (1 - 0.571))

    def _left(self, duration: Duration, steps: int, examples: int, tokens: int) -> Duration:
        """What the phases before the last one leave of the run."""
        match duration.unit:
            case DurationUnit.STEPS:
                amount = duration.amount - steps
            case DurationUnit.EXAMPLES:
                amount = duration.amount - examples
            case DurationUnit.TOKENS:
                amount = duration.amount - tokens
            case DurationUnit.EPOCHS:
                amount = duration.amount - tokens / (self.facts.train_tokens or 1)
        return Duration(amount=max(0.0, amount), unit=duration.unit)


def _steps(count: int) -> Duration:
    return Duration(amount=count, unit=DurationUnit.STEPS)


def _with_values(config: RunConfig, values: dict[str, Any]) -> RunConfig:
    """A copy of a config with values set by dotted key."""
    top: dict[str, Any] = {}
    for section in {key.split(".")[0] for key in values}:
        inner = {k.split(".", 1)[1]: v for k, v in values.items() if k.split(".")[0] == section}
        top[section] = _updated(getattr(config, section), inner)
    return config.model_copy(update=top)


def _updated(section: Any, values: dict[str, Any]) -> Any:
    update: dict[str, Any] = {}
    for key, value in values.items():
        if key.startswith("sets."):
            _, name, field = key.split(".")
            sets = update.setdefault("sets", dict(section.sets))
            sets[name] = sets[name].model_copy(update={field: value})
        else:
            update[key] = value
    return section.model_copy(update=update)
