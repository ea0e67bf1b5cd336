"""The one table of accelerators: compute, memory and links of one jax device, each with its source.

In: a chip's product name, or the kind that a device says it is; out: its constants. A jax device is
a whole chip on v4 and v5p (two TensorCores that share its work, "megacore"), v5e and v6e, half a chip
on TPU7x, and a GPU.

Sources. TPU peaks, memory, its bandwidth, and network: cloud.google.com/tpu/docs/{v4,v5e,v5p,v6e,tpu7x}.
Links: "How to Scale Your Model" (jax-ml.github.io/scaling-book/tpus), 45 or 90 GB/s a link and
direction, which is 10% below what Google's pages name; TPU7x has v5p's links by those pages (1,200 GB/s
a chip), shared by the chip's two devices. Clocks: dense bfloat16 peak over FLOPs a cycle. Memory that a
program may use: the limit that the TPU compiler itself applies (`exceeds available HBM (95.73G)`), libtpu
0.0.52; 0.0.42 allows up to 0.01 GiB more. GPUs: NVIDIA's data sheets (SXM, dense, without sparsity);
memory as nvidia-smi and CUDA show it less the 5% that is left to the CUDA context, NCCL and cuDNN.
"""

from __future__ import annotations

from dataclasses import dataclass

GIB = 1 << 30


@dataclass(frozen=True)
class Chip:
    """Constants of one jax device.

    Attributes:
        name: product name, such as `v5p`.
        device_kind: as `jax.Device.device_kind` spells it.
        platform: `tpu` or `gpu`.
        peak: dense bfloat16 FLOP/s.
        clock: cycles a second, in which the TPU compiler counts; None on GPUs.
        cores: TensorCores that share the device's work.
        memory_bytes: of high-bandwidth memory.
        usable_bytes: of it what a program may use.
        memory_bandwidth: bytes/s to and from it.
        link_bandwidth: bytes/s over one axis of the torus, both directions together; on GPUs what one
            sends over NVLink.
        torus_axes: axes of the torus; 0 on GPUs, which a switch connects.
        network_bandwidth: bytes/s that one device sends to other slices or machines.
        devices_per_chip: jax devices of a chip.
        devices_per_host: jax devices of one machine.
    """

    name: str
    device_kind: str
    platform: str
    peak: float
    clock: float | None
    cores: int
    memory_bytes: int
    usable_bytes: int
    memory_bandwidth: float
    link_bandwidth: float
    torus_axes: int
    network_bandwidth: float
    devices_per_chip: int = 1
    devices_per_host: int = 4

    @property
    def sent_over_links(self) -> float:
        """Bytes/s that a device can send over all its links together, to both sides of each axis."""
        return self.link_bandwidth * max(1, self.torus_axes)


def _tpu(
    name: str,
    device_kind: str,
    *,
    tflops: float,
    ghz: float,
    gib: tuple[float, float],
    memory_gb_s: float,
    axes: tuple[int, float],
    network_gbit_s: float,
    cores: int = 1,
    devices_per_chip: int = 1,
    devices_per_host: int = 4,
) -> Chip:
    """A TPU's row: memory is (all, usable) in GiB, axes (count, GB/s in both directions)."""
    return Chip(
        name=name,
        device_kind=device_kind,
        platform="tpu",
        peak=tflops * 1e12,
        clock=ghz * 1e9,
        cores=cores,
        memory_bytes=round(gib[0] * GIB),
        usable_bytes=round(gib[1] * GIB),
        memory_bandwidth=memory_gb_s * 1e9,
        link_bandwidth=axes[1] * 1e9,
        torus_axes=axes[0],
        network_bandwidth=network_gbit_s / 8 * 1e9,
        devices_per_chip=devices_per_chip,
        devices_per_host=devices_per_host,
    )


def _gpu(
    name: str,
    device_kind: str,
    *,
    tflops: float,
    mib: int,
    memory_gb_s: float,
    nvlink_gb_s: float,
    network_gbit_s: float,
) -> Chip:
    """A GPU's row: memory in MiB as CUDA shows it, NVLink one direction, a network card for each."""
    return Chip(
        name=name,
        device_kind=device_kind,
        platform="gpu",
        peak=tflops * 1e12,
        clock=None,
        cores=1,
        memory_bytes=mib << 20,
        usable_bytes=round(0.95 * (mib << 20)),
        memory_bandwidth=memory_gb_s * 1e9,
        link_bandwidth=nvlink_gb_s * 1e9,
        torus_axes=0,
        network_bandwidth=network_gbit_s / 8 * 1e9,
        devices_per_host=8,
    )


CHIPS: dict[str, Chip] = {
    chip.name: chip
    for chip in (
        # Network of v4: not in Google's pages; "How to Scale Your Model" takes v5p's 6.25 GB/s for both.
        _tpu(
            "v4", "TPU v4", tflops=275, ghz=1.05, gib=(32, 30.75), memory_gb_s=1200,
            axes=(3, 90), network_gbit_s=50, cores=2,
        ),
        # 6.4 Tbit/s for a pod of 256.
        _tpu(
            "v5e", "TPU v5 lite", tflops=197, ghz=1.5, gib=(16, 15.75), memory_gb_s=819,
            axes=(2, 90), network_gbit_s=25,
        ),
        # 96 GiB, of which 95 are shown: the rest is the system's.
        _tpu(
            "v5p", "TPU v5", tflops=459, ghz=1.75, gib=(96, 95.73), memory_gb_s=2765,
            axes=(3, 180), network_gbit_s=50, cores=2,
        ),
        # Of v6e and TPU7x the compiler counts 2^19 FLOPs a cycle at best.
        _tpu(
            "v6e", "TPU v6 lite", tflops=918, ghz=1.75, gib=(32, 31.24), memory_gb_s=1638,
            axes=(2, 180), network_gbit_s=100,
        ),
        # Half a chip: 2,307 TFLOP/s, 192 GiB, 7,380 GB/s and the links are the whole one's.
        _tpu(
            "tpu7x", "TPU7x", tflops=1153.5, ghz=2.2, gib=(96, 94.74), memory_gb_s=3690,
            axes=(3, 90), network_gbit_s=50, devices_per_chip=2, devices_per_host=8,
        ),
        _gpu(
            "a100", "NVIDIA A100-SXM4-80GB", tflops=312, mib=81_920, memory_gb_s=2039,
            nvlink_gb_s=300, network_gbit_s=200,
        ),
        _gpu(
            "h100", "NVIDIA H100 80GB HBM3", tflops=989, mib=81_559, memory_gb_s=3350,
            nvlink_gb_s=450, network_gbit_s=400,
        ),
        _gpu(
            "h200", "NVIDIA H200", tflops=989, mib=143_771, memory_gb_s=4800,
            nvlink_gb_s=450, network_gbit_s=400,
        ),
        _gpu(
            "b200", "NVIDIA B200", tflops=2250, mib=183_359, memory_gb_s=7700,
            nvlink_gb_s=900, network_gbit_s=400,
        ),
    )
}  # fmt: skip

# Other spellings of the same device, by version of jax and of the product.
_ALIASES = {
    "TPU v5e": "v5e",
    "TPU v5p": "v5p",
    "TPU v6e": "v6e",
    "NVIDIA A100-SXM4-40GB": "a100",
}
_BY_KIND = {chip.device_kind: chip for chip in CHIPS.values()} | {
    kind: CHIPS[name] for kind, name in _ALIASES.items()
}


def chip_of(device_kind: str) -> Chip | None:
    """The chip that `jax.Device.device_kind` names; None where it is not in the table (a CPU).

    An A100 of 40 GB has the compute and links of the 80 GB row, not its memory.
    """
    return _BY_KIND.get(device_kind)
