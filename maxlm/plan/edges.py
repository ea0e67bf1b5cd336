"""What a plan says of slices whose links do not close to rings.

In: a topology and its collectives, timed as on a torus; out: notes with the seconds that may come on top.
"""

from __future__ import annotations

from maxlm.plan.result import Collective
from maxlm.plan.topology import Topology

_UNSEEN = 0.001  # seconds that are not worth a note


def edge_notes(topology: Topology, collectives: list[Collective]) -> list[str]:
    """None for tori, GPUs, and where what blocks takes no time.

    All collectives are charged with all links of a chip. A chip at the end of an axis that does not wrap
    around has one link of two there, and whatever all others have goes through it: up to twice the time.
    """
    sides = zip(topology.shape, topology.wrap, strict=False)
    if topology.chip.platform != "tpu" or all(wraps or side == 1 for side, wraps in sides):
        return []
    blocking = sum(c.seconds for c in collectives if not c.is_overlapped and not c.network)
    if blocking < _UNSEEN:
        return []
    shape = "×".join(map(str, topology.shape))
    return [
        f"a slice of {shape} chips does not close to rings: collectives are charged with all links of a "
        f"chip, chips at its edges have half of them on an axis, so that what blocks may take up to "
        f"{blocking:.3g} s more"
    ]
