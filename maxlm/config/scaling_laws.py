"""Published power laws for batch and learning rate, and what they were fitted on.

StepFun's "Step Law" (arXiv:2503.04715: 3,700 models of 60M to 1.07B parameters on 2B to 100B
tokens), because it takes parameters and tokens apart: a small model trained long gets a larger rate
than compute alone (DeepSeek, arXiv:2401.02954) would give it. Outside that range it is an
extrapolation, and derived values say so.
"""

from __future__ import annotations

MAX_LEARNING_RATE = 2**-7  # the largest that the study tried
STUDIED_PARAMETERS = (60e6, 1.07e9)
STUDIED_TOKENS = (2e9, 100e9)


def step_law_batch_tokens(tokens: float) -> float:
    """Tokens per step: 0.58 · D^0.571 (arXiv:2503.04715, equation 1)."""
    return 0.58 * tokens**0.571


def step_law_learning_rate(non_embedding_parameters: float, tokens: float) -> float:
    """Peak learning rate: 1.79 · N^-0.713 · D^0.307 (arXiv:2503.04715, equation 1)."""
    return 1.79 * non_embedding_parameters**-0.713 * tokens**0.307


def outside(what: str, value: float, studied: tuple[float, float]) -> str:
    """A note for a rule that is used outside what its law was fitted on; empty inside."""
    low, high = studied
    if low <= value <= high:
        return ""
    return f"; extrapolated: the law was fitted on {low:.3g} to {high:.3g} {what}"
