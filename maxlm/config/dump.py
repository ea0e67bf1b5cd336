"""A config written as YAML that loads again equal."""

from __future__ import annotations

from typing import Any

import yaml

from maxlm.config.document import ConfigDumper
from maxlm.config.schema import RunConfig


def to_yaml(config: RunConfig) -> str:
    """The whole config, defaults included, in the order of the schema."""
    return dump(config.model_dump(mode="json"))


def dump(plain: Any) -> str:
    """Plain data as YAML that any reader, of YAML 1.1 or 1.2, takes for the same."""
    return yaml.dump(plain, Dumper=ConfigDumper, sort_keys=False, allow_unicode=True, width=100)
