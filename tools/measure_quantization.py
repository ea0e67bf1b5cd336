"""What 8-bit weights and activations cost in perplexity, and save in bytes.

    python tools/measure_quantization.py runs/quickstart stores/shakespeare --split validation
    python tools/measure_quantization.py FOLDER text.txt            # a Hugging Face folder and a text

One row per kind: bytes of the model's arrays, loss in nats per token, perplexity, and its change. A text
is cut into windows of the model's context; each is scored by itself.
"""

from __future__ import annotations

import argparse
import math
from pathlib import Path

import numpy as np

from maxlm.config.choices import Quantization
from maxlm.data.store import TokenStore
from maxlm.generate.language_model import load
from maxlm.generate.scoring import Scorer


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("model", help="run or Hugging Face folder")
    parser.add_argument("text", help="text file, or a token store of the model's tokenizer")
    parser.add_argument("--split", default="validation", help="of a store")
    parser.add_argument("--tokens", type=int, default=50_000, help="most tokens to score")
    arguments = parser.parse_args()
    print("| kind | MB | loss | perplexity | change |\n|---|---|---|---|---|", flush=True)
    plain = 0.0
    for kind in [None, *(kind.value for kind in Quantization)]:
        model = load(arguments.model, quantization=kind)
        ids = read(arguments.text, arguments.split, model)[: arguments.tokens]
        scorer = Scorer(model.engine.programs.model)
        size = model.context_length
        windows = [ids[i : i + size].tolist() for i in range(0, len(ids) - size + 1, size)]
        logprobs = np.concatenate([scorer.logprobs(model.params, w) for w in windows])
        loss = -float(logprobs.mean(dtype=np.float64))
        plain = plain or math.exp(loss)
        change = 100 * (math.exp(loss) / plain - 1)
        megabytes = sum(array.nbytes for array in model.params.values()) / 1e6
        print(
            f"| {kind or 'none'} | {megabytes:.2f} | {loss:.4f} | {math.exp(loss):.4f} | "
            f"{change:+.2f}% |",
            flush=True,
        )


def read(path: str, split: str, model) -> np.ndarray:
    """Token ids of a text or of a split of a store."""
    if Path(path).is_dir():
        tokens = TokenStore(path).split(split)
        return np.asarray(tokens.read(0, tokens.num_tokens), np.int32)
    return np.array(model.tokenizer.encode(Path(path).read_text()), np.int32)


if __name__ == "__main__":
    main()
