"""From a product name to a slice as it is: chips, shape, torus, hosts, and described devices.

In: what people call hardware (`v5p-128`, `2xv5e-256`, `v5p:4x4x8`, `h100x64`); out: a `Topology`, whose
`devices()` are jax devices that need not exist, for which the TPU compiler compiles. A slice is
described with the torus that it has, since without it the compiler takes other collectives than on the
hardware, and with one device a chip where the chip has one ("megacore").

Product names count TensorCores on v4, v5p and TPU7x (two a chip) and chips on v5e and v6e, as
cloud.google.com/tpu/docs does. Slices of 64 chips and more of the former are made of cubes of 4×4×4;
all sides then wrap around. On v5e and v6e a side of 16 does
(jax-ml.github.io/scaling-book/tpus). Twisted tori are not described: the compiler has no word for them.
"""

from __future__ import annotations

import contextlib
import itertools
import math
import os
import re
import sys
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from maxlm.errors import ConfigError, ParallelError, did_you_mean
from maxlm.parallel.chips import CHIPS, Chip

Shape = tuple[int, ...]

# Less than a cube, then cubes in any number up to the largest job that can be asked for.
_PART_CUBES: list[Shape] = [(1, 1, 1), (2, 2, 1), (2, 2, 2), (2, 2, 4), (2, 4, 4)]
_LARGEST_SIDE = 24
_MOST_CHIPS = {"v4": 4096, "v5p": 6144, "tpu7x": 9216}
_FLAT_SHAPES: list[Shape] = [
    (1, 1), (2, 2), (2, 4), (4, 4), (4, 8), (8, 8), (8, 16), (16, 16),
]  # fmt: skip
_PRODUCT_NAMES = {"v5litepod": "v5e"} | {name: name for name in CHIPS}

_ONE_AT_A_TIME = threading.Lock()
_NAME = re.compile(r"(?:(?P<slices>\d+)x)?(?P<product>[a-z]\w*?)(?P<rest>-\d+|:\d+(x\d+)+|x\d+)")


@dataclass(frozen=True)
class Topology:
    """One or several equal slices of TPU chips, or GPUs in machines of eight.

    Attributes:
        chip: what it is made of.
        shape: chips along each axis of one slice; `(count,)` of GPUs.
        slices: how many; 1 of GPUs.
    """

    chip: Chip
    shape: Shape
    slices: int = 1

    @property
    def name(self) -> str:
        """As people say it: `v5p-128`, `2 × v5p-128`, `v5p:4x4x12`, `h100x64`."""
        chips = math.prod(self.shape)
        if self.chip.platform == "gpu":
            return f"{self.chip.name}x{chips}"
        name = f"{self.chip.name}:{_by(self.shape)}"
        if _most_cubic(self.chip, chips) == self.shape:
            name = f"{self.chip.name}-{chips * _counted_per_chip(self.chip)}"
        return name if self.slices == 1 else f"{self.slices} × {name}"

    @property
    def num_chips(self) -> int:
        """Chips of all slices; GPUs."""
        return math.prod(self.shape) * self.slices

    @property
    def num_devices(self) -> int:
        """jax devices of all slices."""
        return self.num_chips * self.chip.devices_per_chip

    @property
    def wrap(self) -> tuple[bool, bool, bool]:
        """Which axes of a slice are rings."""
        if len(self.shape) == 3:
            whole = all(side % 4 == 0 for side in self.shape)
            return (whole, whole, whole)
        x, y, *_ = (*(side == 16 for side in self.shape), False)
        return (x, y, False)

    def devices(self) -> list[Any]:
        """Described jax devices, for a mesh and for `lower().compile()`; none of them is real.

        Raises:
            ConfigError: GPUs, or no TPU compiler that this jax can use.
            ParallelError: the compiler describes the slice otherwise than it is.
        """
        return _described(self)


def parse_topology(text: str, slices: int | None = None) -> Topology:
    """The topology that a name means.

    Args:
        text: such as `v5p-128`, `v5litepod-16`, `v5p:4x4x8`, `2xv5p-128`, `h100x64`.
        slices: how many, unless the name says so.

    Raises:
        ConfigError: an unknown name (says which are known) or a slice that does not exist (says the
            nearest that do).
    """
    match = _NAME.fullmatch(text.strip().lower().replace("×", "x").replace(" ", ""))
    product = match["product"] if match else re.split(r"[-:x]", text.lower())[0]
    if match is None and product in _PRODUCT_NAMES:
        chip = CHIPS[_PRODUCT_NAMES[product]]
        raise ConfigError(f"topology '{text}': say how many chips: {_how_named(chip)}")
    if match is None or product not in _PRODUCT_NAMES:
        raise ConfigError(
            f"no topology '{text}'{did_you_mean(product, _PRODUCT_NAMES)}; known are "
            f"{', '.join(known_topologies())}; `:4x4x8` in place of `-256` gives the shape in chips, "
            "and `2x` before it (or --slices 2) two slices"
        )
    chip, rest = CHIPS[_PRODUCT_NAMES[product]], match["rest"]
    given = int(match["slices"]) if match["slices"] else None
    if given is not None and slices is not None and given != slices:
        raise ConfigError(f"topology '{text}' has {given} slices, but --slices says {slices}")
    count = next((n for n in (given, slices) if n is not None), 1)
    if count < 1:
        raise ConfigError(f"topology '{text}': {count} slices; at least 1 is needed")
    if chip.platform == "gpu":
        return Topology(chip, (_gpus(chip, rest, text, count),))
    if rest[0] == "-":
        return Topology(chip, _shape_of_count(chip, int(rest[1:]), text), count)
    if rest[0] == ":":
        shape = tuple(int(side) for side in rest[1:].split("x"))
        return Topology(chip, _checked(chip, shape, text), count)
    raise ConfigError(f"topology '{text}': {_how_named(chip)}")


def smallest_slice(chip: Chip, chips: int) -> Topology | None:
    """The smallest single slice of at least so many chips; None where there is none that large."""
    if chip.platform == "gpu":
        host = chip.devices_per_host
        return Topology(chip, (chips if chips < host else -(-chips // host) * host,))
    counts = [math.prod(shape) for shape in _shapes(chip)]
    enough = min((count for count in counts if count >= chips), default=None)
    shape = _most_cubic(chip, enough) if enough else None
    return Topology(chip, shape) if shape else None


def known_topologies() -> list[str]:
    """One pattern for each product, such as `v5p-N (TensorCores, 2 a chip, 2 to 12288)`."""
    known = []
    for chip in CHIPS.values():
        if chip.platform == "gpu":
            known.append(f"{chip.name}xN (GPUs)")
            continue
        counts = [math.prod(shape) * _counted_per_chip(chip) for shape in _shapes(chip)]
        known.append(f"{chip.name}-N ({_unit(chip)}, {min(counts)} to {max(counts)})")
    return [*known, "v5litepod-N (= v5e-N)"]


def _how_named(chip: Chip) -> str:
    if chip.platform == "gpu":
        return f"GPUs are counted, such as {chip.name}x8 or {chip.name}x64"
    return (
        f"{chip.name} slices are named {chip.name}-N, N {_unit(chip)}, or by their shape in chips, "
        f"such as {chip.name}:{_by(_shapes(chip)[3])}"
    )


def _gpus(chip: Chip, rest: str, text: str, slices: int) -> int:
    if rest[0] != "x" or slices > 1:
        raise ConfigError(
            f"topology '{text}': {_how_named(chip)}, in machines of {chip.devices_per_host}; there "
            "are no slices"
        )
    count, host = int(rest[1:]), chip.devices_per_host
    if count < 1 or (count > host and count % host):
        below = max(1, count // host) * host
        raise ConfigError(
            f"topology '{text}': beyond one machine GPUs come in machines of {host}: nearest are "
            f"{chip.name}x{below} and {chip.name}x{below + host}"
        )
    return count


def _counted_per_chip(chip: Chip) -> int:
    """What a product's number counts, for each chip."""
    return 2 if chip.torus_axes == 3 else 1


def _unit(chip: Chip) -> str:
    return "TensorCores, 2 a chip" if chip.torus_axes == 3 else "chips"


def _shapes(chip: Chip) -> list[Shape]:
    """Every slice that there is, smallest first."""
    if chip.torus_axes == 2:
        return _FLAT_SHAPES
    sides = range(4, _LARGEST_SIDE + 1, 4)
    cubes = (
        shape
        for shape in itertools.combinations_with_replacement(sides, 3)
        if math.prod(shape) <= _MOST_CHIPS[chip.name]
    )
    return [*_PART_CUBES, *sorted(cubes, key=lambda shape: (math.prod(shape), sum(shape)))]


def _most_cubic(chip: Chip, chips: int) -> Shape | None:
    """The default shape of so many chips: the shortest way around."""
    shapes = [shape for shape in _shapes(chip) if math.prod(shape) == chips]
    return min(shapes, key=sum, default=None)


def _shape_of_count(chip: Chip, count: int, text: str) -> Shape:
    per_chip = _counted_per_chip(chip)
    shape = _most_cubic(chip, count // per_chip) if count % per_chip == 0 else None
    if shape is not None:
        return shape
    counts = sorted({math.prod(shape) * per_chip for shape in _shapes(chip)})
    near = [max((c for c in counts if c < count), default=None)]
    near += [min((c for c in counts if c > count), default=None)]
    names = [f"{chip.name}-{n} ({_by(_most_cubic(chip, n // per_chip) or ())})" for n in near if n]
    raise ConfigError(
        f"topology '{text}': there is no slice of {count} {_unit(chip).split(',')[0]}; nearest: "
        f"{' and '.join(names)}"
    )


def _checked(chip: Chip, shape: Shape, text: str) -> Shape:
    for known in _shapes(chip):
        if sorted(known) == sorted(shape):  # the same slice, turned
            return known
    if len(shape) != chip.torus_axes:
        raise ConfigError(
            f"topology '{text}': {chip.name} slices have {chip.torus_axes} sides, such as "
            f"{chip.name}:{_by(_shapes(chip)[3])}, and this has {len(shape)}"
        )

    def distance(other: Shape) -> float:
        return sum(
            abs(math.log2(max(a, 0.5) / b))
            for a, b in zip(sorted(shape), sorted(other), strict=True)
        )

    near = sorted(_shapes(chip), key=distance)[:3]
    raise ConfigError(
        f"topology '{text}': there is no slice of {_by(shape)} chips; nearest: "
        f"{', '.join(f'{chip.name}:{_by(other)}' for other in near)}"
    )


def _by(shape: Shape) -> str:
    return "x".join(map(str, shape))


def _described(topology: Topology) -> list[Any]:
    chip = topology.chip
    if chip.platform == "gpu":
        raise ConfigError(f"{topology.name}: there is no compiler for GPUs without one here")
    # Both are read when the compiler's library is loaded.
    os.environ.setdefault("ALLOW_MULTIPLE_LIBTPU_LOAD", "1")
    os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")
    from jax.experimental import topologies

    options: dict[str, Any] = {"wrap": topology.wrap, "num_slices": topology.slices}
    if chip.name == "v4":
        options["chip_config_name"] = "megacore"
    if math.prod(topology.shape) == 1:
        options["chips_per_host_bounds"] = (1, 1, 1)
    try:
        with _silent_library():
            described = topologies.get_topology_desc(
                platform="tpu", topology_name=f"{chip.name}:{_by(topology.shape)}", **options
            )
    except (RuntimeError, ImportError, OSError, NotImplementedError) as error:
        raise ConfigError(_without_compiler(str(error))) from error
    devices: list[Any] = list(described.devices)
    first: Any = devices[0]
    seen = (len(devices), first.device_kind, getattr(first, "num_cores", chip.cores))
    if seen != (topology.num_devices, chip.device_kind, chip.cores):
        raise ParallelError(
            f"{topology.name}: {topology.num_devices} devices {chip.device_kind} of {chip.cores} "
            f"TensorCores are meant, but the compiler describes {seen[0]} × {seen[1]} of {seen[2]}; "
            "this version of libtpu knows the chip otherwise"
        )
    return devices


@contextlib.contextmanager
def _silent_library() -> Iterator[None]:
    """Keep from the terminal what the library writes there when it finds that it is on no TPU."""
    with _ONE_AT_A_TIME:  # of a search's threads, or one would keep what another put in its place
        sys.stderr.flush()
        kept = os.dup(2)
        try:
            with open(os.devnull, "w") as nowhere:
                os.dup2(nowhere.fileno(), 2)
            yield
        finally:
            os.dup2(kept, 2)
            os.close(kept)


def _without_compiler(text: str) -> str:
    """What to install where the TPU compiler is missing or cannot be used."""
    import importlib.metadata

    import jax

    def version(package: str) -> str | None:
        try:
            return importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            return None

    found = version("libtpu")
    install = f"pip install 'jax[tpu]=={jax.__version__}'"
    first = text.strip().splitlines()[0][:300] if text.strip() else "no reason given"
    if found is None:
        return (
            "the TPU compiler is not installed (no package libtpu); it needs no TPU: "
            f"{install}. Without it: --no-compile"
        )
    return (
        f"the TPU compiler cannot be used: libtpu {found} with jax {jax.__version__} says: {first}. "
        f"The version that belongs to this jax: {install}. Without it: --no-compile"
    )
