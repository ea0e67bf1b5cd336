"""The table of docs/families.md: every family there and back, measured against transformers.

python tools/compare_families.py [NAME …] [--stories FOLDER] [--write docs/families.md]

Per tiny model (tools/tiny_families.py): it is imported as `maxlm import hf` does, its logits are held
against transformers' reading of the same files, it is exported, transformers reads the export, it is
imported again and every array's checksum compared, and both continue prompts greedily. With --stories, a
folder with a trained Hugging Face model is a further row. Where some models alone are named, the page keeps
its rows of the others. Needs torch and transformers.
"""

from __future__ import annotations

import argparse
import os
import shutil
import tempfile
from pathlib import Path
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import jax
import numpy as np
import torch
import transformers
from tiny_families import TINY, prompts, tokenizer_of_words, write_folder

from maxlm.batch import Batch
from maxlm.generate.language_model import LanguageModel
from maxlm.generate.request import Request
from maxlm.generate.sampling import SamplingOptions
from maxlm.train.checkpoints import Checkpoints
from maxlm.train.exporting import export_huggingface
from maxlm.train.importing import import_huggingface
from maxlm.train.loading import load

BEGIN, END = "<!-- begin: table of families -->", "<!-- end: table of families -->"
HEAD = (
    "| family | architecture | import | export | round trip | max logit difference | "
    "logits' std | generation equal |\n|---|---|---|---|---|---|---|---|"
)
PROMPT_LENGTHS, NEW = (5, 12), 20


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("names", nargs="*", help="tiny models (all)")
    parser.add_argument(
        "--stories", help="folder of a trained Hugging Face model, for a row of its own"
    )
    parser.add_argument("--write", help="page whose table is replaced")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    rows: list[str] = []
    for name in arguments.names or TINY:
        with tempfile.TemporaryDirectory() as folder:
            theirs = Path(folder) / "theirs"
            write_folder(name, theirs)
            rows.append(compared(name, theirs, Path(folder), prompts()))
        print(rows[-1], flush=True)
    if arguments.stories:
        with tempfile.TemporaryDirectory() as folder:
            # A copy: the original may be read-only, and transformers writes beside it.
            theirs = Path(shutil.copytree(arguments.stories, Path(folder) / "theirs"))
            tokens = np.random.default_rng(0).integers(3, 512, (2, 40)).astype(np.int32)
            rows.append(compared("stories260K (trained)", theirs, Path(folder), tokens))
        print(rows[-1], flush=True)
    if arguments.write:
        page = Path(arguments.write)
        before, _, rest = page.read_text().partition(BEGIN)
        old, _, after = rest.partition(END)
        kept = old.strip().splitlines()[2:] if arguments.names or not arguments.stories else []
        table = "\n".join([HEAD, *in_order([*kept, *rows])])
        page.write_text(f"{before}{BEGIN}\n{table}\n{END}{after}")


def in_order(rows: list[str]) -> list[str]:
    """The last row of each model, in the order of the tiny models, then those of others."""
    by_name = {row.split("|")[1].strip(): row for row in rows}
    return [by_name.pop(name) for name in TINY if name in by_name] + list(by_name.values())


def compared(name: str, theirs: Path, folder: Path, tokens: np.ndarray) -> str:
    """One row of the table."""
    tokenizer = folder / "tokenizer"
    tokenizer.mkdir()
    if not (theirs / "tokenizer.json").exists():
        (tokenizer / "tokenizer.json").write_text(tokenizer_of_words())
    source = str(tokenizer) if any(tokenizer.iterdir()) else None
    first, second, out = folder / "first", folder / "second", folder / "out"
    done = import_huggingface(str(theirs), str(first), tokenizer=source)
    export_huggingface(str(first), str(out))
    import_huggingface(str(out), str(second), tokenizer=source)
    model = _theirs(theirs)
    trained = load(str(first))
    ours = LanguageModel(trained, str(first / "huggingface"))
    with torch.no_grad():
        expected = model(torch.from_numpy(tokens.astype(np.int64))).logits.numpy()
    actual = _logits(trained, tokens)
    texts = [row[:n].tolist() for row, n in zip(tokens, PROMPT_LENGTHS, strict=True)]
    exported = _theirs(out)
    wanted = [_continued(exported, text) for text in texts]
    for text in texts:
        ours.engine.submit(Request(text, NEW, SamplingOptions(temperature=0)))
    written = [[token.id for token in tokens] for tokens in ours.engine.run()]
    cells = [
        name,
        f"`{model.config.architectures[0]}`",
        "yes" if done.parameters == _count(model) else "no",
        _exported(model, exported),
        "bitwise" if _sums(first) == _sums(second) else "differs",
        f"{np.abs(actual - expected).max():.1e}",
        f"{expected.std():.2f}",
        "yes" if written == wanted else "no",
    ]
    return f"| {' | '.join(cells)} |"


def _theirs(folder: Path) -> Any:
    model, found = transformers.AutoModelForCausalLM.from_pretrained(
        folder, attn_implementation="eager", dtype="float32", output_loading_info=True
    )
    assert not found["missing_keys"] and not found["unexpected_keys"], found
    return model.eval()


def _count(model: Any) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


def _exported(a: Any, b: Any) -> str:
    """Whether an export's weights are the original's to the bit, or how far they are."""
    pairs = zip(a.parameters(), b.parameters(), strict=True)
    largest = max((x - y).abs().max().item() for x, y in pairs)
    return "bitwise" if largest == 0 else f"to {largest:.1e}"


def _sums(run: Path) -> dict[str, str]:
    records = Checkpoints(str(run / "checkpoints")).describe(0)
    return {name: record.checksum for name, record in records.items()}


def _logits(trained: Any, tokens: np.ndarray) -> np.ndarray:
    ones = np.ones_like(tokens)
    positions = np.broadcast_to(np.arange(tokens.shape[1], dtype=np.int32), tokens.shape)
    batch = Batch(tokens, tokens, ones.astype(np.float32), ones, positions)
    with jax.set_mesh(trained.mesh):
        program = jax.jit(lambda p, b: trained.model.bind(p).logits(b))
        return np.asarray(program(trained.params, batch))


def _continued(model: Any, prompt: list[int]) -> list[int]:
    out = model.generate(
        torch.tensor([prompt]),
        attention_mask=torch.ones(1, len(prompt), dtype=torch.int64),
        do_sample=False,
        max_new_tokens=NEW,
        min_new_tokens=NEW,
        eos_token_id=None,
        pad_token_id=0,
    )
    return out[0, len(prompt) :].tolist()


if __name__ == "__main__":
    main()
