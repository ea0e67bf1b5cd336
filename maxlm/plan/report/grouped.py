"""Collectives of a plan put together by what they do, as people read them.

In come a plan's collectives, of which a large program has hundreds; out comes one row for each kind,
mesh axes, overlap and network, most wire bytes first.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from maxlm.plan.result import Collective


@dataclass(frozen=True)
class CollectiveGroup:
    """Collectives of one kind over the same axes.

    Attributes:
        kind: such as `all-gather`.
        axes: mesh axes; empty: not recognised.
        size: devices of a group.
        is_overlapped: whether the program computes meanwhile.
        network: whether they cross slices or machines.
        times: runs in a step, all together.
        payload_bytes: of all runs, per device.
        wire_bytes: that a device sends in a step.
        seconds: on the links, of all runs.
        sources: `file.py:line` of those that are known, costliest first.
    """

    kind: str
    axes: tuple[str, ...]
    size: int
    is_overlapped: bool
    network: bool
    times: int
    payload_bytes: float
    wire_bytes: float
    seconds: float
    sources: tuple[str, ...]

    @property
    def over(self) -> str:
        """The axes in words: `fsdp`, `replica × fsdp`, or the group's size where none is known."""
        return " × ".join(self.axes) or f"groups of {self.size}"

    @property
    def over_with_size(self) -> str:
        """The axes with the number of devices of a group: `fsdp (64)`."""
        return f"{self.over} ({self.size})" if self.axes else self.over

    @property
    def how(self) -> str:
        """`overlapped` or `blocking`."""
        return "overlapped" if self.is_overlapped else "blocking"


def group_collectives(collectives: Iterable[Collective]) -> list[CollectiveGroup]:
    """One group per kind, axes, size, overlap and network, most wire bytes first."""
    together: dict[tuple, list[Collective]] = {}
    for one in collectives:
        key = (one.kind, one.axes, one.size, one.is_overlapped, one.network)
        together.setdefault(key, []).append(one)
    groups = [_grouped(members) for members in together.values()]
    return sorted(groups, key=lambda g: (-g.wire_bytes, g.kind, g.axes))


def _grouped(members: list[Collective]) -> CollectiveGroup:
    first = members[0]
    sources: dict[str, float] = {}
    for one in members:
        if one.source:
            sources[one.source] = sources.get(one.source, 0.0) + one.seconds
    return CollectiveGroup(
        kind=first.kind,
        axes=first.axes,
        size=first.size,
        is_overlapped=first.is_overlapped,
        network=first.network,
        times=sum(one.times for one in members),
        payload_bytes=sum(one.payload_bytes for one in members),
        wire_bytes=sum(one.wire_bytes for one in members),
        seconds=sum(one.seconds for one in members),
        sources=tuple(sorted(sources, key=lambda source: -sources[source])),
    )
