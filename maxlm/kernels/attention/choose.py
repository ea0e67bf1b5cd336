"""Which implementation computes a call of attention: by hardware and shape, or as the config forces.

`choose` is pure, so what it will say can be reported before anything is compiled. It never picks an
implementation that lacks something that the call needs.
"""

from __future__ import annotations

from dataclasses import dataclass

from maxlm.config.choices import AttentionKernel
from maxlm.errors import ParallelError
from maxlm.kernels.attention import chunked, cudnn, splash
from maxlm.kernels.attention.features import AttentionCall, Features, Hardware

FEATURES: dict[AttentionKernel, Features] = {
    AttentionKernel.REFERENCE: chunked.FEATURES,  # plain XLA, as chunked is
    AttentionKernel.CHUNKED: chunked.FEATURES,
    AttentionKernel.SPLASH: splash.FEATURES,
    AttentionKernel.CUDNN: cudnn.FEATURES,
}

# Per platform, best first; the last can do everything. The reference is never chosen.
PREFERENCE: dict[str, tuple[AttentionKernel, ...]] = {
    "tpu": (AttentionKernel.SPLASH, AttentionKernel.CHUNKED),
    "gpu": (AttentionKernel.CUDNN, AttentionKernel.CHUNKED),
    "cpu": (AttentionKernel.CHUNKED,),
}


@dataclass(frozen=True)
class Choice:
    """An implementation and why it was chosen."""

    kernel: AttentionKernel
    reason: str

    def __str__(self) -> str:
        return f"{self.kernel.value} ({self.reason})"


def choose(
    call: AttentionCall, hardware: Hardware, forced: AttentionKernel = AttentionKernel.AUTO
) -> Choice:
    """The implementation of a call on some hardware.

    Args:
        call: what the layer needs.
        hardware: what the program is compiled for.
        forced: by `parallel.attention`; auto: the best that can.

    Raises:
        ParallelError: the forced one cannot do this call.
    """
    if forced is not AttentionKernel.AUTO:
        lacks = FEATURES[forced].lacking(call, hardware)
        if lacks:
            alternative = choose(call, hardware)
            raise ParallelError(
                f"parallel.attention is {forced.value}, which cannot run here: {'; '.join(lacks)}; "
                f"auto would take {alternative.kernel.value}"
            )
        return Choice(forced, "forced by parallel.attention")
    passed_over: list[str] = []
    for kernel in PREFERENCE.get(hardware.platform, (AttentionKernel.CHUNKED,)):
        lacks = FEATURES[kernel].lacking(call, hardware)
        if not lacks:
            best = f"the best for {hardware.kind or hardware.platform}"
            return Choice(kernel, f"not {'; '.join(passed_over)}" if passed_over else best)
        passed_over.append(f"{kernel.value}: {'; '.join(lacks)}")
    raise ParallelError(f"no implementation of attention can do {call}: {'; '.join(passed_over)}")
