"""Which shipped runs are for a pod: their names end with the product name of its topology.

Out: preset name → `Topology`, such as `runs/llama3-8b-2xv5p-128` → two slices of v5p-128. The plan of each
is in docs/pods.md.
"""

from __future__ import annotations

import re

from maxlm.config.presets import preset_names
from maxlm.plan.topology import Topology, parse_topology

_ENDING = re.compile(r"-((?:\d+x)?(?:v4|v5e|v5p|v6e|tpu7x)-\d+|(?:a100|h100|h200|b200)x\d+)$")


def topology_in_name(name: str) -> Topology | None:
    """The topology that a config's name ends with; None where it names none.

    Raises ConfigError for one that does not exist.
    """
    found = _ENDING.search(name.removesuffix(".yaml"))
    return parse_topology(found.group(1)) if found else None


def pods() -> dict[str, Topology]:
    """Every shipped run that is for a pod, with its topology."""
    named = {name: topology_in_name(name) for name in preset_names() if name.startswith("runs/")}
    return {name: topology for name, topology in named.items() if topology is not None}
