"""maxlm: a language model's whole life in JAX.

What the commands do is a call here too:

    import maxlm
    outcome = maxlm.pretrain(maxlm.load_config("runs/quickstart"))
    model = maxlm.load("runs/quickstart")
    print(model.generate("ROMEO:", max_tokens=50).text)
"""

from __future__ import annotations

from typing import Any

__version__ = "0.1.0"

_EXPORTS = {
    "load_config": "maxlm.config.load",
    "pretrain": "maxlm.cli.train",
    "load": "maxlm.generate.language_model",
}


def __getattr__(name: str) -> Any:
    # Imported when asked for: `maxlm --help` must not wait for jax.
    if name in _EXPORTS:
        import importlib

        return getattr(importlib.import_module(_EXPORTS[name]), name)
    raise AttributeError(f"module 'maxlm' has no attribute '{name}'")
