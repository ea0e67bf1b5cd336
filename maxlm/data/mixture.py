"""Which source each example comes from: a closed form in place of random draws.

In comes an example's index within a phase; out go its source and its ordinal within that source,
computed for a whole batch at once and as fast at index 10⁹ as at 0. The sources hang on a Huffman
tree of their weights. A node that gives its left child the share p of its examples sends example n
to the left when round((n + 1) p) > round(n p): the even spread of Bresenham's line.

How far counts can stray. Over any window of m of its examples a node gives a child within 1 of
p m. So if a node at share P of all strays by less than E from P n over every window of n examples,
its child strays by less than 1 + p E. A child that is itself a node has p ≤ 2/3: its two children
were the lightest when they were joined, so its later sibling weighs at least as much as the
heavier of them, that is at least half of the node. Hence every inner node strays by less than
1 / (1 - 2/3) = 3 and every source by less than 1 + 3 = 4 examples, however many sources there are
and however long the window; with two sources by less than 1. (Shares are 64-bit fixed point, which
adds less than n / 2⁶⁴ per level.)
"""

from __future__ import annotations

import heapq
from collections.abc import Mapping
from fractions import Fraction
from typing import NamedTuple

import numpy as np

from maxlm.errors import ConfigError

MAX_DEVIATION = 4  # examples, over any window; proved above
_LOW_HALF = np.uint64(0xFFFFFFFF)
_HALF = np.uint64(32)


class _Node(NamedTuple):
    left: int  # a source's number, or ~number of an inner node
    right: int
    left_share: int  # of this node's examples, times 2⁶⁴


class Mixture:
    """Sources and weights of one phase; sources of weight 0 are left out."""

    def __init__(self, weights: Mapping[str, float]):
        """Take weights by source name; they need not sum to 1.

        Raises ConfigError when a weight is negative or not finite, or when all are 0.
        """
        for name, weight in weights.items():
            if not 0 <= weight < float("inf"):
                raise ConfigError(
                    f"weight of source '{name}' is {weight}: write a number that is 0 or more"
                )
        # The decimal that the user wrote, so that weights 0.3 : 0.6 mix exactly as 3 : 6 do; and
        # by name, so that the order in a file does not matter.
        exact = {name: Fraction(repr(float(weights[name]))) for name in sorted(weights)}
        self.names = tuple(name for name, weight in exact.items() if weight > 0)
        if not self.names:
            raise ConfigError(
                f"the weights of all {len(weights)} sources are 0: nothing to train on; "
                "give at least one source a weight above 0"
            )
        total = sum(exact.values())
        self.shares = {name: float(exact[name] / total) for name in self.names}
        self._nodes = _huffman([exact[name] for name in self.names])

    def split(self, indices: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Source number (into `names`) and ordinal within it. int64 `[n]` → two int64 `[n]`."""
        sources = np.zeros(len(indices), np.int64)
        ordinals = np.asarray(indices, np.int64)
        if not self._nodes:
            return sources, ordinals
        ordinals = ordinals.copy()
        waiting = [(~(len(self._nodes) - 1), np.arange(len(indices)))]
        while waiting:
            number, where = waiting.pop()
            if number >= 0 or not len(where):
                sources[where] = number
                continue
            node = self._nodes[~number]
            here = ordinals[where]
            before = _rounded_product(here, node.left_share)
            is_left = _rounded_product(here + 1, node.left_share) > before
            ordinals[where] = np.where(is_left, before, here - before)
            waiting += [(node.left, where[is_left]), (node.right, where[~is_left])]
        return sources, ordinals

    def counts(self, num_examples: int) -> dict[str, int]:
        """Examples of each source among the first `num_examples`."""
        counts = dict.fromkeys(self.names, 0)
        waiting = [(~(len(self._nodes) - 1) if self._nodes else 0, num_examples)]
        while waiting:
            number, count = waiting.pop()
            if number >= 0:
                counts[self.names[number]] = count
                continue
            node = self._nodes[~number]
            left = (count * node.left_share + (1 << 63)) >> 64
            waiting += [(node.left, left), (node.right, count - left)]
        return counts


def _huffman(weights: list[Fraction]) -> list[_Node]:
    """Inner nodes, the root last; none for a single source."""
    heap = [(weight, number, number) for number, weight in enumerate(weights)]
    heapq.heapify(heap)
    nodes: list[_Node] = []
    while len(heap) > 1:
        light, light_tie, left = heapq.heappop(heap)
        heavy, _, right = heapq.heappop(heap)
        nodes.append(_Node(left, right, round((light / (light + heavy)) * 2**64)))
        heapq.heappush(heap, (light + heavy, light_tie, ~(len(nodes) - 1)))
    return nodes


def _rounded_product(numbers: np.ndarray, share: int) -> np.ndarray:
    """round(n × share / 2⁶⁴), exact in 128 bits made of 32-bit halves. int64 `[n]` → int64 `[n]`."""
    high_share, low_share = np.uint64(share >> 32), np.uint64(share & 0xFFFFFFFF)
    numbers = numbers.astype(np.uint64)
    high, low = numbers >> _HALF, numbers & _LOW_HALF
    carry = high * low_share + ((low * low_share) >> _HALF)
    middle = low * high_share + (carry & _LOW_HALF)
    whole = high * high_share + (carry >> _HALF) + (middle >> _HALF)
    rest = (middle & _LOW_HALF) >> np.uint64(31)  # the first bit after the point
    return (whole + rest).astype(np.int64)
