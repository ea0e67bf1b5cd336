"""What a family is: how its config.json and its tensors are said in our terms.

A family has no code of its own: a tuple of settings, each of which reads some keys of config.json
into fields of `ModelConfig` and writes them back, and a tuple of rules, each of which says that a
tensor is such and such parameters of ours.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

from maxlm.config.schema import ModelConfig
from maxlm.interop.transforms import Transform


class Setting(Protocol):
    """Some keys of config.json and the fields of `ModelConfig` that they decide."""

    @property
    def keys(self) -> tuple[str, ...]:
        """Keys of config.json that it reads."""
        ...

    def read(self, theirs: Mapping[str, Any]) -> dict[str, Any]:
        """Fields of `ModelConfig`. Raises ConfigError naming the key that is not supported."""
        ...

    def write(self, model: ModelConfig) -> dict[str, Any]:
        """Keys of config.json for a resolved model; what cannot be said there is left as it is said."""
        ...


@dataclass(frozen=True)
class Rule:
    """One kind of tensor.

    Attributes:
        theirs: its name in a file, with `{layer}` and `{expert}` where there is one each.
        ours: our parameters that it holds, in its order; those of a block relative to the block. A
            model without the first of them has no such tensor.
        transform: how the one becomes the other.
        beside: only a model with this parameter too has the tensor; empty: any.
        without: only a model without this one has it.
        all_experts: it holds those of all experts, where names with `{expert}` have a tensor each.
    """

    theirs: str
    ours: tuple[str, ...]
    transform: Transform
    beside: str = ""
    without: str = ""
    all_experts: bool = False


@dataclass(frozen=True)
class Family:
    """A family of models.

    Attributes:
        name: how a person names it.
        architecture: the class in `architectures` of its config.json.
        model_type: its `model_type`.
        fixed: fields of `ModelConfig` that all its models share.
        settings: what config.json decides.
        rules: its tensors.
        prefix: what names of tensors begin with; files without it are read too.
        unused: regular expressions of tensors that files may have and no model needs; `{num_layers}` in
            one is the number of the model's layers, and so of the first block after its last.
    """

    name: str
    architecture: str
    model_type: str
    fixed: Mapping[str, Any]
    settings: tuple[Setting, ...]
    rules: tuple[Rule, ...]
    prefix: str = "model."
    unused: tuple[str, ...] = field(default=())
