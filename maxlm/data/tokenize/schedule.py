"""Which unit is next: those that an earlier run finished are taken as they are.

In go the plan and the records of finished units; out come units to do, in an order that gives every
worker a file of its own as long as there are enough. Compressed files, whose length only shows on
the way, are continued until one of their units says that it was the last.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from maxlm.data.tokenize.plan import Unit
from maxlm.data.tokenize.unit import UnitResult

Recorded = Callable[[Unit], UnitResult | None]


@dataclass
class _Group:
    """Units of one file, or one unit of several files."""

    units: list[Unit]
    issued: int = 0
    in_flight: int = 0
    ended: bool = False
    results: dict[str, UnitResult] = field(default_factory=dict)

    @property
    def open_ended(self) -> bool:
        return self.units[0].open_ended

    @property
    def exhausted(self) -> bool:
        """Whether no further unit can be issued."""
        return self.ended if self.open_ended else self.issued == len(self.units)

    def issue(self) -> Unit:
        if self.issued == len(self.units):
            self.units.append(self.units[-1].next())
        self.issued += 1
        return self.units[self.issued - 1]


class Schedule:
    """Gives out units and collects their results."""

    def __init__(self, groups: list[list[Unit]], recorded: Recorded):
        """Lay out groups of units; `recorded` looks up what an earlier run finished."""
        self._groups = [_Group(list(units)) for units in groups]
        self._recorded = recorded
        self._first = 0  # groups before it are exhausted
        self.reused_bytes = 0  # of text, estimated

    def next(self) -> tuple[int, Unit] | None:
        """The next unit to do and its group; None: none now (later perhaps, after `finish`)."""
        while (chosen := self._choose()) is not None:
            group = self._groups[chosen]
            unit = group.issue()
            result = self._recorded(unit)
            if result is None:
                group.in_flight += 1
                return chosen, unit
            self._keep(group, unit, result)
            self.reused_bytes += unit.weight
        return None

    def finish(self, group: int, unit: Unit, result: UnitResult) -> None:
        """Take the result of a unit."""
        self._groups[group].in_flight -= 1
        self._keep(self._groups[group], unit, result)

    def results(self) -> list[UnitResult]:
        """Results in the order of the documents, when all is done."""
        found = []
        for group in self._groups:
            for unit in group.units[: group.issued]:
                found.append(group.results[unit.name])
                if group.open_ended and found[-1].ended:
                    break
        return found

    def _keep(self, group: _Group, unit: Unit, result: UnitResult) -> None:
        group.results[unit.name] = result
        group.ended = group.ended or result.ended

    def _choose(self) -> int | None:
        """A group with units left: one that nobody works on, then the one with fewest workers."""
        while self._first < len(self._groups) and self._groups[self._first].exhausted:
            self._first += 1
        best: int | None = None
        for index in range(self._first, len(self._groups)):
            group = self._groups[index]
            if group.exhausted:
                continue
            if not group.open_ended or not group.in_flight:
                return index
            if best is None or group.in_flight < self._groups[best].in_flight:
                best = index
        return best
