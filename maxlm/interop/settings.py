"""Settings of config.json: small pieces, each readable and writable, of which families are made."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from maxlm.config.choices import Activation, BiasKind
from maxlm.config.schema import ModelConfig
from maxlm.errors import ConfigError, did_you_mean

_REQUIRED = object()


@dataclass(frozen=True)
class Same:
    """A key whose value is a field's.

    Attributes:
        key: of config.json.
        field: of `ModelConfig`.
        default: what a config.json without the key means; none: it must be there.
        null: whether an explicit null is a value of its own and not the default.
    """

    key: str
    field: str
    default: Any = _REQUIRED
    null: bool = False

    @property
    def keys(self) -> tuple[str, ...]:
        """The key."""
        return (self.key,)

    def read(self, theirs: Mapping[str, Any]) -> dict[str, Any]:
        """The field."""
        if self.null and self.key in theirs and theirs[self.key] is None:
            return {self.field: None}
        return {self.field: value_of(theirs, self.key, self.default)}

    def write(self, model: ModelConfig) -> dict[str, Any]:
        """The key."""
        return {self.key: getattr(model, self.field)}


@dataclass(frozen=True)
class Chosen:
    """A key whose values are names for those of a field."""

    key: str
    field: str
    values: Mapping[Any, Any]  # theirs → ours; of several with one meaning, the first is written
    default: Any = _REQUIRED

    @property
    def keys(self) -> tuple[str, ...]:
        """The key."""
        return (self.key,)

    def read(self, theirs: Mapping[str, Any]) -> dict[str, Any]:
        """The field. Raises ConfigError for a value without a meaning here."""
        value = value_of(theirs, self.key, self.default)
        if value not in self.values:
            known = ", ".join(map(str, self.values))
            near = did_you_mean(str(value), map(str, self.values))
            raise ConfigError(f"{self.key}: {value!r} is not supported{near}; supported: {known}")
        return {self.field: self.values[value]}

    def write(self, model: ModelConfig) -> dict[str, Any]:
        """The key; absent where no value means what the model is."""
        ours = getattr(model, self.field)
        names = [name for name, value in self.values.items() if value == ours]
        return {self.key: names[0]} if names else {}


@dataclass(frozen=True)
class Fixed:
    """A key that has one value alone which the decoder computes."""

    key: str
    value: Any
    written: bool = True

    @property
    def keys(self) -> tuple[str, ...]:
        """The key."""
        return (self.key,)

    def read(self, theirs: Mapping[str, Any]) -> dict[str, Any]:
        """Nothing. Raises ConfigError when the value is another."""
        value = theirs.get(self.key)
        if value is not None and value != self.value:
            raise ConfigError(f"{self.key}: {value!r} is not supported, only {self.value!r} is")
        return {}

    def write(self, model: ModelConfig) -> dict[str, Any]:
        """The key."""
        return {self.key: self.value} if self.written else {}


@dataclass(frozen=True)
class HeadDim:
    """`head_dim`, which follows from width and heads where it is not said.

    Attributes:
        default: what it is where it is not said; None: hidden_size / num_attention_heads.
    """

    default: int | None = None
    keys: tuple[str, ...] = ("head_dim",)

    def read(self, theirs: Mapping[str, Any]) -> dict[str, Any]:
        """The field."""
        given = theirs.get("head_dim") or self.default
        size = value_of(theirs, "hidden_size") // value_of(theirs, "num_attention_heads")
        return {"head_dim": given or size}

    def write(self, model: ModelConfig) -> dict[str, Any]:
        """The key."""
        return {"head_dim": model.head_dim}


@dataclass(frozen=True)
class Derived:
    """A field that follows from other keys, and that no key says."""

    field: str
    rule: Callable[[Mapping[str, Any]], Any]
    keys: tuple[str, ...] = ()

    def read(self, theirs: Mapping[str, Any]) -> dict[str, Any]:
        """The field."""
        return {self.field: self.rule(theirs)}

    def write(self, model: ModelConfig) -> dict[str, Any]:
        """Nothing: a model whose field is another is found out when its config is read back."""
        return {}


@dataclass(frozen=True)
class SaidElsewhere:
    """Keys that say again what others say, or nothing of what is computed."""

    keys: tuple[str, ...]

    def read(self, theirs: Mapping[str, Any]) -> dict[str, Any]:
        """Nothing."""
        return {}

    def write(self, model: ModelConfig) -> dict[str, Any]:
        """Nothing."""
        return {}


@dataclass(frozen=True)
class QueryScale:
    """`query_pre_attn_scalar`, by whose root attention logits are divided (Gemma)."""

    default: float
    keys: tuple[str, ...] = ("query_pre_attn_scalar",)

    def read(self, theirs: Mapping[str, Any]) -> dict[str, Any]:
        """The field; unset where it is the root of head_dim, as it usually is."""
        scalar = value_of(theirs, self.keys[0], self.default)
        same = scalar == theirs.get("head_dim")
        return {"attention_scale": None if same else scalar**-0.5}

    def write(self, model: ModelConfig) -> dict[str, Any]:
        """The key, whole where it is within rounding of a whole number."""
        scale, width = model.attention_scale, model.head_dim
        scalar = width if scale is None else scale**-2
        assert scalar
        near = round(scalar)
        return {self.keys[0]: near if abs(scalar - near) < 1e-9 * scalar else scalar}


def value_of(theirs: Mapping[str, Any], key: str, default: Any = _REQUIRED) -> Any:
    """A key's value or its default; an explicit null counts as absent.

    Raises:
        ConfigError: it is not there and nothing stands for it.
    """
    value = theirs.get(key)
    if value is not None:
        return value
    if default is _REQUIRED:
        raise ConfigError(f"{key}: is missing{did_you_mean(key, theirs)}")
    return default(theirs) if callable(default) else default


ACTIVATIONS: dict[str, Activation] = {
    "silu": Activation.SILU,
    "swish": Activation.SILU,
    "gelu": Activation.GELU,
    "gelu_pytorch_tanh": Activation.GELU_TANH,
    "gelu_new": Activation.GELU_TANH,
    "relu": Activation.RELU,
    "relu2": Activation.RELU2,
}
BIASES = {False: BiasKind.NONE, True: BiasKind.ALL}
