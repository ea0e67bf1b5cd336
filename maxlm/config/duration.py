"""Lengths of training in the unit that the user thinks in: `500 steps`, `2B tokens`, `3 epochs`.

In comes what a config says; out goes a `Duration`, and from it a number of steps.
"""

from __future__ import annotations

import math
import re
from enum import StrEnum
from typing import Annotated, Any

from pydantic import BaseModel, BeforeValidator, ConfigDict, PlainSerializer, WithJsonSchema

from maxlm.errors import ConfigError


class DurationUnit(StrEnum):
    """What a duration counts."""

    STEPS = "steps"
    TOKENS = "tokens"
    EXAMPLES = "examples"
    EPOCHS = "epochs"


class Duration(BaseModel):
    """An amount and its unit."""

    model_config = ConfigDict(frozen=True)
    amount: float
    unit: DurationUnit

    def __str__(self) -> str:
        amount = int(self.amount) if self.amount == int(self.amount) else self.amount
        return f"{amount} {self.unit.value}"


_SCALES = {"": 1.0, "k": 1e3, "m": 1e6, "b": 1e9, "t": 1e12}
_PATTERN = (
    r"\s*([0-9][0-9_]*(?:\.[0-9]+)?(?:e[+-]?[0-9]+)?)\s*([kmbt]?)"
    r"\s*(step|token|example|epoch)?s?\s*"
)
EXAMPLES = "'500 steps', '2.5B tokens', '10k examples' or '3 epochs'"


def parse_duration(value: Any) -> Any:
    """Read `500`, `"500 steps"`, `"2.5B tokens"`, `"3 epochs"` as a Duration (a number is steps).

    Raises ValueError for anything else (pydantic makes a validation error of it).
    """
    if isinstance(value, Duration) or value is None:
        return value
    match = re.fullmatch(_PATTERN, str(value), re.IGNORECASE)
    if match and not isinstance(value, bool):
        amount = float(match[1].replace("_", "")) * _SCALES[match[2].lower()]
        if match[2] and not match[3]:
            raise ValueError(
                f"'{value}' has no unit: write {match[1]}{match[2]} tokens, steps, examples or epochs"
            )
        if math.isfinite(amount):
            return Duration(amount=amount, unit=DurationUnit((match[3] or "step").lower() + "s"))
    raise ValueError(f"'{value}' is not a duration: write a number and a unit, such as {EXAMPLES}")


DurationField = Annotated[
    Duration,
    BeforeValidator(parse_duration),
    PlainSerializer(str, return_type=str),
    WithJsonSchema(
        {
            "anyOf": [
                {
                    "type": "string",
                    "pattern": "^\\s*[0-9].*$",
                    "examples": ["500 steps", "2B tokens"],
                },
                {"type": "number", "minimum": 0},
            ]
        }
    ),
]


def to_steps(
    duration: Duration,
    *,
    tokens_per_step: float,
    examples_per_step: float,
    tokens_per_epoch: float | None = None,
) -> int:
    """Steps after which at least `duration` has passed, rounded up.

    Args:
        duration: an amount and its unit.
        tokens_per_step: examples per step × length (padding counts).
        examples_per_step: the global batch.
        tokens_per_epoch: tokens of the mixture's sources read once; only epochs need it.

    Raises:
        ConfigError: epochs are asked for and nothing says how long one is.
    """
    match duration.unit:
        case DurationUnit.STEPS:
            steps = duration.amount
        case DurationUnit.EXAMPLES:
            steps = duration.amount / examples_per_step
        case DurationUnit.TOKENS:
            steps = duration.amount / tokens_per_step
        case DurationUnit.EPOCHS:
            if not tokens_per_epoch:
                raise ConfigError(
                    f"'{duration}' cannot be counted in steps before the data is known: "
                    "use steps, tokens or examples"
                )
            steps = duration.amount * tokens_per_epoch / tokens_per_step
    # An amount such as 3 × 0.1 must not round up to a step more than was meant.
    nearest = round(steps)
    return nearest if math.isclose(steps, nearest, rel_tol=1e-9) else math.ceil(steps)
