"""What a chip costs an hour: `configs/prices.yaml`, each price with its date and source, or a user's file.

In: a chip and maybe a file; out: a `Price`, or None where no price is known. Then the cost of a run: days,
chip-hours and dollars for its tokens.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import yaml

from maxlm import storage
from maxlm.config.presets import preset_folders
from maxlm.errors import ConfigError, did_you_mean
from maxlm.parallel.chips import CHIPS
from maxlm.plan.result import Cost

_FIELDS = ("dollars", "where", "date", "source")


@dataclass(frozen=True)
class Price:
    """Of a chip and hour.

    Attributes:
        dollars: US dollars.
        where: provider and region.
        date: of the price, or when it was read.
        source: where it can be looked up.
    """

    dollars: float
    where: str
    date: str
    source: str

    def __str__(self) -> str:
        """In words, with date and source."""
        return f"${self.dollars:,.2f} a chip and hour ({self.where}, {self.date}, {self.source})"


def price_of(chip: str, file: str | None = None) -> Price | None:
    """The price of a chip by its product name; None: not known.

    Args:
        chip: such as `v5p`.
        file: YAML of the form of `configs/prices.yaml`; what it has wins.

    Raises:
        ConfigError: the file cannot be read, names an unknown chip, or lacks a field.
    """
    prices = _read(storage.join(str(preset_folders()[0]), "prices.yaml"))
    if file is not None:
        prices |= _read(file)
    return prices.get(chip)


def cost_of(
    tokens: float | None, tokens_per_second: float | None, chips: int, price: Price | None
) -> Cost:
    """Days, chip-hours and dollars; None where the tokens, the speed or the price are not known."""
    words = str(price) if price else ""
    if not tokens or not tokens_per_second:
        return Cost(tokens=tokens, days=None, chip_hours=None, dollars=None, price=words)
    hours = tokens / tokens_per_second / 3600
    return Cost(
        tokens=tokens,
        days=hours / 24,
        chip_hours=hours * chips,
        dollars=hours * chips * price.dollars if price else None,
        price=words,
    )


def _read(path: str) -> dict[str, Price]:
    try:
        data: Any = yaml.safe_load(storage.read_text(path))
    except storage.StorageError as error:
        raise ConfigError(f"prices {path}: {error}") from error
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f"{path}:{mark.line + 1}" if mark else path
        raise ConfigError(
            f"prices {where}: not YAML: {getattr(error, 'problem', error)}"
        ) from error
    if not isinstance(data, dict):
        raise ConfigError(f"prices {path}: expected chips with {', '.join(_FIELDS)} each")
    return {chip: _price(path, chip, fields) for chip, fields in data.items()}


def _price(path: str, chip: Any, fields: Any) -> Price:
    if chip not in CHIPS:
        raise ConfigError(
            f"prices {path}: no chip '{chip}'{did_you_mean(str(chip), CHIPS)}; known are "
            f"{', '.join(CHIPS)}"
        )
    if not isinstance(fields, dict) or set(fields) != set(_FIELDS):
        raise ConfigError(f"prices {path}: {chip}: expected exactly {', '.join(_FIELDS)}")
    dollars = fields["dollars"]
    is_number = isinstance(dollars, int | float) and not isinstance(dollars, bool)
    if not is_number or not 0 < dollars < math.inf:
        raise ConfigError(
            f"prices {path}: {chip}: dollars must be a number above 0, not {dollars!r}"
        )
    words = {name: str(fields[name]) for name in _FIELDS[1:]}
    return Price(dollars=float(dollars), **words)
