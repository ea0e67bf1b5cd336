"""Sizes rounded up to few, because every size is a program to compile."""

from __future__ import annotations


def bucket(size: int, least: int) -> int:
    """`size` up to a power of two from `least` on, or, from 32 on, to one and a half of one."""
    power = least
    while power < size:
        if power >= 32 and power * 3 // 2 >= size:
            return power * 3 // 2
        power *= 2
    return power
