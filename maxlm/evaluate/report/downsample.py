"""Shortens long curves so that a page stays small and no spike gets lost.

In come columns of equal length (float64, NaN: unknown), out come at most `limit` points per
column: the mean of each stretch of neighbouring records, with its lowest and highest value.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np


@dataclass
class Curve:
    """Points of one field; `low` and `high` are None where every record is a point of its own."""

    mean: np.ndarray
    low: np.ndarray | None = None
    high: np.ndarray | None = None


def stretches(length: int, limit: int) -> np.ndarray:
    """First index of each of at most `limit` stretches, as equal in length as can be."""
    points = min(length, limit)
    return np.arange(points, dtype=np.int64) * length // max(1, points)


def shorten(column: np.ndarray, limit: int) -> Curve:
    """Mean, lowest and highest value of each stretch; NaN where nothing in it is known."""
    if column.size <= limit:
        return Curve(column)
    first = stretches(column.size, limit)
    known = np.isfinite(column)
    number = np.add.reduceat(known.astype(np.int64), first)
    total = np.add.reduceat(np.where(known, column, 0.0), first)
    mean = np.where(number > 0, total / np.maximum(number, 1), np.nan)
    return Curve(mean, np.fmin.reduceat(column, first), np.fmax.reduceat(column, first))


def add_up(column: np.ndarray, limit: int) -> np.ndarray:
    """Sum of each stretch, what is unknown counted as nothing."""
    if not column.size:
        return column
    return np.add.reduceat(np.nan_to_num(column), stretches(column.size, limit))


def thin(records: list, limit: int) -> list:
    """At most `limit` of `records`, evenly chosen, first and last among them."""
    if len(records) <= limit:
        return records
    return [records[i] for i in np.linspace(0, len(records) - 1, limit).round().astype(int)]
