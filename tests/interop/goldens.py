"""What transformers says of the tiny models, stored, so that parity is checked without torch.

python -m tests.interop.goldens          # write tests/interop/goldens/*.npz anew (needs maxlm[test])
python -m tests.interop.goldens NAME …   # those of some models alone

Each file holds `logits [2, n, vocab]` at the positions `POSITIONS` of the prompts, and `greedy
[2, NEW]`, the likeliest continuations of prompts of two lengths.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

import numpy as np

from tests.interop.tiny import LENGTH, TINY, prompts, write_folder

FOLDER = Path(__file__).parent / "goldens"
POSITIONS = np.array([0, 1, 6, 7, 8, 15, 16, 17, 23, 31, LENGTH - 2, LENGTH - 1])
PROMPT_LENGTHS, NEW = (5, 12), 20  # past the windows of local layers


def path_of(name: str) -> Path:
    """The golden file of a tiny model."""
    return FOLDER / f"{name}.npz"


def theirs_of(folder: Path):
    """transformers' model of a folder, every weight of which it must know."""
    import transformers

    model, found = transformers.AutoModelForCausalLM.from_pretrained(
        folder, attn_implementation="eager", dtype="float32", output_loading_info=True
    )
    assert not found["missing_keys"] and not found["unexpected_keys"], found
    return model.eval()


def their_logits(model, tokens: np.ndarray) -> np.ndarray:
    """`[B, T, vocab]` float32."""
    import torch

    with torch.no_grad():
        return model(torch.from_numpy(tokens.astype(np.int64))).logits.numpy()


def their_continuation(model, prompt: np.ndarray) -> list[int]:
    """The NEW likeliest tokens after one prompt."""
    import torch

    out = model.generate(
        torch.from_numpy(prompt[None].astype(np.int64)),
        attention_mask=torch.ones(1, len(prompt), dtype=torch.int64),
        do_sample=False,
        max_new_tokens=NEW,
        min_new_tokens=NEW,
        eos_token_id=None,
        pad_token_id=0,
    )
    return out[0, len(prompt) :].tolist()


def main(names: list[str]) -> None:
    """Write the golden files of these models, or all and no other."""
    FOLDER.mkdir(exist_ok=True)
    if not names:
        for old in FOLDER.glob("*.npz"):
            old.unlink()
    for name in names or TINY:
        with tempfile.TemporaryDirectory() as folder:
            write_folder(name, Path(folder))
            model = theirs_of(Path(folder))
        tokens = prompts()
        logits = their_logits(model, tokens)[:, POSITIONS]
        pairs = zip(tokens, PROMPT_LENGTHS, strict=True)
        greedy = [their_continuation(model, row[:length]) for row, length in pairs]
        np.savez_compressed(path_of(name), logits=logits, greedy=np.array(greedy, np.int16))
        print(path_of(name))


if __name__ == "__main__":
    main(sys.argv[1:])
