"""How often loops over blocks of keys run, for those who plan a step without running it.

A block of queries goes over the blocks of keys that it may see, which documents and the device's place in a
row decide: the compiled loop has no length that can be read. So a scope around it is named after the mean
number of its turns.
"""

from __future__ import annotations

# In front of the number.
EXPECTED_TURNS = "expected_turns_"


def expected_turns(
    keys: int, size: int, window: int | None, *, queries: int | None = None, devices: int = 1
) -> float:
    """Blocks of keys that a block of queries meets on average, where each row is one document.

    Args:
        keys: blocks of keys on a device.
        size: tokens of a block.
        window: how many keys a query sees, itself included; None: all before it.
        queries: blocks of queries, the last of the row, as of the device with most work where keys are
            gathered; None: all of the row.
        devices: of a ring that shares the row, whose keys these queries meet one after another.
    """
    total = keys * devices
    reach = total if window is None else -(-(window - 1) // size) + 1
    seen = [min(i + 1, reach) for i in range(total)][-(queries or total) :]
    return sum(seen) / len(seen) / devices
