"""What a plan says of slices whose links do not close to rings.

In: a topology and its collectives, timed as on a torus; out: notes with the seconds that may come on top.
"""

from __future__ import annotations

from maxlm.plan.result import Collective
from maxlm.plan.topology import Topology

_UNSEEN = 0.001  # seconds that are not worth a note


def edge_notes(topology: Topology, collectives: list[Collective]) -> list[str]:
    """None for tori, GPUs, and where what blocks takes no time.

    All collectives are charged with all links of a chip, two an axis. A chip at the end of an axis that does
    not wrap around has one there, and none along a side of one chip.
    """
    if topology.chip.platform != "tpu" or topology.num_chips == topology.slices:
        return []
    sides = zip(topology.shape, topology.wrap, strict=False)
    links = sum(2 if wraps else int(side > 1) for side, wraps in sides)
    charged = 2 * topology.chip.torus_axes
    blocking = sum(c.seconds for c in collectives if not c.is_overlapped and not c.network)
    more = blocking * (charged / links - 1)
    if more < _UNSEEN:
        return []
    shape = "×".join(map(str, topology.shape))
    return [
        f"a slice of {shape} chips does not close to rings: collectives are charged with {charged} links of a "
        f"chip, and a chip at its corner has {links}, so that what blocks may take about {more:.3g} s more"
    ]
