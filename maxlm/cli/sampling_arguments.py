"""How tokens are chosen, as arguments of the commands that let a model write."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from maxlm.errors import ConfigError

if TYPE_CHECKING:
    from maxlm.generate.sampling import SamplingOptions


def add_sampling_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare them."""
    group = parser.add_argument_group("how tokens are chosen")
    add = group.add_argument
    add("--temperature", type=float, default=0.8, help="0 takes the likeliest token (0.8)")
    add("--top-k", type=int, metavar="K", help="only the K likeliest tokens")
    add(
        "--top-p", type=float, default=1.0, metavar="P", help="only the likeliest that sum to P (1)"
    )
    add(
        "--min-p",
        type=float,
        default=0.0,
        metavar="P",
        help="only tokens at least P times as likely as the likeliest (0)",
    )
    add(
        "--repetition-penalty",
        type=float,
        default=1.0,
        metavar="X",
        help="divides logits of tokens in prompt or answer (1: none)",
    )
    add(
        "--presence-penalty",
        type=float,
        default=0.0,
        metavar="X",
        help="taken off the logit of a token that was drawn (0)",
    )
    add(
        "--frequency-penalty",
        type=float,
        default=0.0,
        metavar="X",
        help="taken off for each time that it was drawn (0)",
    )
    add(
        "--logit-bias",
        action="append",
        default=[],
        metavar="ID=X",
        help="added to a token's logit, from -100 to 100; as often as you like",
    )
    add("--logprobs", type=int, metavar="N", help="tell the N likeliest tokens at each place too")
    add("--seed", type=int, default=0, help="of the draws (0)")


def sampling_options(arguments: argparse.Namespace) -> SamplingOptions:
    """The options. Raises ConfigError."""
    from maxlm.generate.sampling import SamplingOptions

    return SamplingOptions(
        temperature=arguments.temperature,
        top_k=arguments.top_k,
        top_p=arguments.top_p,
        min_p=arguments.min_p,
        repetition_penalty=arguments.repetition_penalty,
        presence_penalty=arguments.presence_penalty,
        frequency_penalty=arguments.frequency_penalty,
        logit_bias=dict(map(_bias, arguments.logit_bias)),
        logprobs=arguments.logprobs,
        seed=arguments.seed,
    )


def _bias(text: str) -> tuple[int, float]:
    token, _, value = text.partition("=")
    try:
        return int(token), float(value)
    except ValueError as error:
        raise ConfigError(
            f"--logit-bias {text}: write a token's id and a number, such as --logit-bias 198=-100; "
            "`maxlm tokenizer encode` tells ids"
        ) from error
