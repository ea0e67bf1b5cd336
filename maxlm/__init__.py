"""maxlm: a language model's whole life in JAX. Start with `maxlm --help` or docs/design.md."""

__version__ = "0.1.0"
