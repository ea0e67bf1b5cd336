"""The model card: README.md of an exported model, from facts of its run."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class CardFacts:
    """What a card says.

    Attributes:
        name: of the model.
        architecture: class of transformers that reads it.
        parameters: how many.
        step: of the checkpoint.
        tokens: trained on; None: not known.
        data: names of the training data → share of the examples.
        evals: set → its last numbers (`loss`, `perplexity`, `bits_per_byte`).
        licence: its SPDX identifier; None: nobody said one.
        source: where imported weights came from.
        context: tokens that the model reads.
        dtype: of the weights.
        options: of the run, worth telling: name → value.
    """

    name: str
    architecture: str
    parameters: int
    step: int
    context: int
    dtype: str
    tokens: int | None = None
    data: dict[str, float] = field(default_factory=dict)
    evals: dict[str, dict[str, Any]] = field(default_factory=dict)
    licence: str | None = None
    source: str | None = None
    options: dict[str, Any] = field(default_factory=dict)


def model_card(facts: CardFacts) -> str:
    """The text of README.md, with the front matter that the Hub reads."""
    front = ["library_name: transformers", "pipeline_tag: text-generation", "tags: [maxlm]"]
    if facts.licence:
        front.insert(0, f"license: {facts.licence}")
    lines = ["---", *front, "---", "", f"# {facts.name}", ""]
    lines += [
        f"A causal language model of {facts.parameters:,} parameters, in the architecture "
        f"`{facts.architecture}`, exported by maxlm.",
        "",
        "```python",
        "from transformers import pipeline",
        "",
        'pipeline("text-generation", model="PATH/TO/THIS/FOLDER")("Once upon a time")',
        "```",
        "",
        "| | |",
        "|---|---|",
        f"| context | {facts.context:,} tokens |",
        f"| weights | {facts.dtype} |",
        f"| training step | {facts.step:,} |",
    ]
    if facts.tokens is not None:
        lines.append(f"| tokens seen | {facts.tokens:,} |")
    lines += [f"| {name} | {value} |" for name, value in facts.options.items()]
    lines += ["", "## Training data", ""]
    if facts.data:
        total = sum(facts.data.values())
        lines += ["| source | share of the examples |", "|---|---|"]
        lines += [f"| {name} | {weight / total:.1%} |" for name, weight in facts.data.items()]
    elif facts.source:
        lines.append(f"Not trained here: the weights were imported from `{facts.source}`.")
    else:
        lines.append("Not recorded.")
    lines += ["", "## Evaluation", ""]
    if facts.evals:
        lines += ["| set | loss | perplexity | bits per byte |", "|---|---|---|---|"]
        for name, numbers in facts.evals.items():
            cells = (_number(numbers.get(n)) for n in ("loss", "perplexity", "bits_per_byte"))
            lines.append(f"| {name} | {' | '.join(cells)} |")
    else:
        lines.append("None recorded.")
    lines += ["", "## Licence", ""]
    lines.append(facts.licence or "Not stated by whoever exported it.")
    return "\n".join(lines) + "\n"


def licence_of(card: str) -> str | None:
    """The licence that a card's front matter names."""
    if not card.startswith("---"):
        return None
    front = card.split("---")[1]
    for line in front.splitlines():
        key, colon, value = line.partition(":")
        if colon and key.strip() == "license":
            return value.strip().strip("'\"") or None
    return None


def _number(value: Any) -> str:
    return f"{value:.4f}" if isinstance(value, float | int) else "–"
