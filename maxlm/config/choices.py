"""The choices that config options offer, one enum each.

What each value means is said in the option's description in `maxlm.config.schema`.
"""

from __future__ import annotations

from enum import StrEnum


class NormKind(StrEnum):
    """How a norm is computed."""

    RMS = "rms"
    LAYER = "layer"


class NormPlacement(StrEnum):
    """Where a block has its norms."""

    PRE = "pre"
    POST = "post"
    BOTH = "both"


class PositionKind(StrEnum):
    """How a token knows where it stands."""

    ROPE = "rope"
    LEARNED = "learned"
    NONE = "none"


class RopeScalingKind(StrEnum):
    """How rotary frequencies are stretched beyond the length that they were trained for."""

    NONE = "none"
    LINEAR = "linear"
    LLAMA3 = "llama3"
    YARN = "yarn"
    LONGROPE = "longrope"


class QKNormWidth(StrEnum):
    """Over what the norm of queries and keys takes its mean."""

    HEAD = "head"
    PROJECTION = "projection"


class MLPKind(StrEnum):
    """The shape of the feed-forward sublayer."""

    GATED = "gated"
    GATED_SHIFTED = "gated_shifted"
    PLAIN = "plain"

    @property
    def is_gated(self) -> bool:
        """Whether there is a gate beside the up projection."""
        return self is not MLPKind.PLAIN


class Activation(StrEnum):
    """The non-linearity of the MLP."""

    SILU = "silu"
    GELU = "gelu"
    GELU_TANH = "gelu_tanh"
    QUICK_GELU = "quick_gelu"
    RELU = "relu"
    RELU2 = "relu2"


class BiasKind(StrEnum):
    """Which projections of attention have a bias."""

    NONE = "none"
    QKV = "qkv"
    ALL = "all"


class AttentionSpan(StrEnum):
    """How far back a layer looks."""

    GLOBAL = "global"
    LOCAL = "local"


class ProjectionInit(StrEnum):
    """How projections into the residual stream start."""

    SCALED = "scaled"
    ZERO = "zero"


class MatrixInit(StrEnum):
    """Where the standard deviation of matrices comes from."""

    FIXED = "fixed"
    FAN_IN = "fan_in"


class Packing(StrEnum):
    """How documents fill an example."""

    CUT = "cut"
    WHOLE = "whole"


class Rematerialization(StrEnum):
    """What the backward pass computes again instead of keeping it, from nothing to almost all."""

    NONE = "none"
    MATMULS = "matmuls"
    ATTENTION = "attention"
    FULL = "full"
    OFFLOAD_ATTENTION = "offload_attention"
    OFFLOAD_INPUTS = "offload_inputs"


class ContextAttention(StrEnum):
    """How attention brings the tokens of a row together that lie over several devices."""

    AUTO = "auto"
    RING = "ring"
    ALL_GATHER = "all_gather"
    ULYSSES = "ulysses"


class AttentionKernel(StrEnum):
    """Who computes attention."""

    AUTO = "auto"
    REFERENCE = "reference"
    CHUNKED = "chunked"
    SPLASH = "splash"
    CUDNN = "cudnn"


class RouterScoring(StrEnum):
    """How a router turns logits into scores."""

    SOFTMAX = "softmax"
    SIGMOID = "sigmoid"


class ExpertMatmul(StrEnum):
    """Which kernel multiplies the tokens of each expert with its weights."""

    AUTO = "auto"
    REFERENCE = "reference"
    BLOCKS = "blocks"
    RAGGED_DOT = "ragged_dot"
    MEGABLOX = "megablox"


class ExpertExchange(StrEnum):
    """How tokens get to the devices that hold their experts."""

    AUTO = "auto"
    GATHER = "gather"
    ALL_TO_ALL = "all_to_all"


class OptimizerKind(StrEnum):
    """Who updates the blocks' matrices."""

    ADAMW = "adamw"
    MUON = "muon"


class ScheduleKind(StrEnum):
    """The learning rate's shape over training."""

    WSD = "wsd"
    COSINE = "cosine"


class Precision(StrEnum):
    """The number type of the computation."""

    FLOAT64 = "float64"
    FLOAT32 = "float32"
    BFLOAT16 = "bfloat16"


class Quantization(StrEnum):
    """How linear maps of a model that is only used are rounded."""

    INT8 = "int8"  # weights; activations stay as they are
    FP8 = "fp8"
    INT8_MATMUL = "int8_matmul"  # activations too, and the product is of 8-bit numbers
    FP8_MATMUL = "fp8_matmul"
