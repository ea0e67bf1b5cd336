"""What the TPU compiler estimates of a program: cycles and kernel calls, each as often as it runs.

In: `compiled.as_text()` of a scheduled TPU program. The compiler writes `estimated_cycles` on fusions
and matmuls, once for a loop's body: here they are multiplied by the trip counts. Collectives, copies
between memories and Pallas kernels carry none; the calls of the last are counted by name.
"""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import dataclass, field

# Clock in Hz by device kind: dense bf16 peak over FLOPs a cycle.
CLOCK = {"TPU v4": 1.05e9, "TPU v5 lite": 1.5e9, "TPU v5": 1.75e9, "TPU v6 lite": 1.75e9}
_INSTRUCTION = re.compile(r"^\s+(ROOT )?%?([\w.\-]+) = ")
_COMPUTATION = re.compile(r"^(ENTRY )?%?([\w.\-]+) \(.*\{\s*$")
_CYCLES = re.compile(r'"estimated_cycles":"(\d+)"')


@dataclass
class Estimate:
    """Sums over a program, per device.

    Attributes:
        cycles: of everything that carries an estimate.
        matmul_cycles: of the fusions around a matmul among it.
        kernels: Pallas calls by name.
    """

    cycles: int = 0
    matmul_cycles: int = 0
    kernels: Counter[str] = field(default_factory=Counter)


def estimate(text: str) -> Estimate:
    """Walk a program from its entry. Raises ValueError for a loop whose trips are not stated."""
    computations, entry = _parse(text)
    found = Estimate()

    def walk(name: str, times: int) -> None:
        for line in computations[name]:
            if " while(" in line:
                trips = _trips(line, computations)
                walk(_named(line, "body"), times * trips)
            elif " call(" in line:
                walk(_named(line, "to_apply"), times)
            elif "tpu_custom_call" in line:
                found.kernels[_kernel(line)] += times
            else:
                _add(found, line, times)

    walk(entry, 1)
    return found


def _add(found: Estimate, line: str, times: int) -> None:
    match = _CYCLES.search(line)
    # Values near 2^64 are negative ones (tpu7x).
    if match and int(match.group(1)) < 1 << 62:
        cycles = int(match.group(1)) * times
        found.cycles += cycles
        if "convolution_algorithm_config" in line or "kind=kOutput" in line:
            found.matmul_cycles += cycles


def _parse(text: str) -> tuple[dict[str, list[str]], str]:
    """Lines of instructions by computation, continued lines joined; and the entry's name."""
    computations: dict[str, list[str]] = {}
    entry = current = ""
    for line in text.splitlines():
        header = _COMPUTATION.match(line)
        if header and "->" in line:
            current = header.group(2)
            computations[current] = []
            entry = current if header.group(1) else entry
        elif line.rstrip() == "}":  # a Pallas kernel's metadata has lines that begin with braces
            current = ""
        elif current and _INSTRUCTION.match(line):
            computations[current].append(line)
        elif current and computations[current]:
            computations[current][-1] += " " + line
    return computations, entry


def _trips(loop: str, computations: dict[str, list[str]]) -> int:
    """Of a loop that counts up from 0, as those of `jax.lax.scan` do."""
    stated = re.search(r'"known_trip_count":\{"n":"(\d+)"', loop)
    if stated:
        return int(stated.group(1))
    condition = computations[_named(loop, "condition")]
    root = next(line for line in condition if line.lstrip().startswith("ROOT"))
    constants = dict(
        match.groups()
        for line in condition
        if (match := re.match(r"\s+(?:ROOT )?%?([\w.\-]+) = s32\[\]\S* constant\((\d+)\)", line))
    )
    limits = [constants[name] for name in re.findall(r"%([\w.\-]+)", root) if name in constants]
    if len(limits) != 1 or ("direction=LT" not in root and "fusion(" not in root):
        raise ValueError(f"how often does this loop run? {loop.strip()[:120]}")
    return int(limits[0])


def _named(line: str, attribute: str) -> str:
    match = re.search(rf"{attribute}=%?([\w.\-]+)", line)
    assert match, line[:200]
    return match.group(1)


def _kernel(line: str) -> str:
    """Name of a Pallas kernel without the number that the compiler appends."""
    match = _INSTRUCTION.match(line)
    assert match
    return re.sub(r"[.\d]+$", "", match.group(2))
