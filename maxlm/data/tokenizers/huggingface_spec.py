"""What a `tokenizers` pipeline is made of: building it, the bytes of its tokens, its specials.

In go file contents; out come a ready pipeline and facts read off its own JSON description.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

from maxlm.errors import TokenizerError

SPACE = "\u2581"

# Tried in this order where no config names them; the first that is a special token wins.
_BOS_NAMES = ("<s>", "<|begin_of_text|>", "<bos>", "<|startoftext|>", "[CLS]", "<|endoftext|>")
_EOS_NAMES = ("</s>", "<|end_of_text|>", "<eos>", "<|endoftext|>", "[SEP]")
_PAD_NAMES = ("<pad>", "<|padding|>", "[PAD]", "<|finetune_right_pad_id|>")


def pipeline(content: bytes, name: str) -> Any:
    """The pipeline of a `tokenizer.json`. Raises TokenizerError."""
    from tokenizers import Tokenizer

    parsed = parse_object(content, name)
    if "model" not in parsed:
        advice = "; a GPT-2 vocabulary is loaded by its folder, which also holds the merges"
        raise TokenizerError(
            f"{name}: no tokenizer.json: it has no 'model'" + (advice if "!" in parsed else "")
        )
    try:
        built = Tokenizer.from_str(content.decode("utf-8"))
    except Exception as error:
        # The library raises bare Exception.
        raise TokenizerError(f"{name}: the tokenizers library refuses it: {error}") from error
    return _plain(built)


def gpt2_pipeline(vocabulary: bytes, merges: bytes, name: str) -> Any:
    """The pipeline of GPT-2: byte-level BPE, `<|endoftext|>` special. Raises TokenizerError."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

    ids = parse_object(vocabulary, f"{name}: vocabulary")
    pairs = _merges(merges, ids, f"{name}: merges")
    try:
        built = Tokenizer(models.BPE(vocab=ids, merges=pairs))
    except Exception as error:
        raise TokenizerError(f"{name}: the tokenizers library refuses it: {error}") from error
    built.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    built.decoder = decoders.ByteLevel()
    specials = [token for token in {*_BOS_NAMES, *_EOS_NAMES, *_PAD_NAMES} if token in ids]
    ordered = sorted(specials, key=lambda token: ids[token])
    built.add_special_tokens([AddedToken(token, normalized=False) for token in ordered])
    return _plain(built)


def parse_object(content: bytes, name: str) -> dict[str, Any]:
    """A JSON object. Raises TokenizerError with the line."""
    try:
        parsed = json.loads(content.decode("utf-8"))
    except UnicodeDecodeError as error:
        raise TokenizerError(f"{name}: not UTF-8 text (byte {error.start})") from error
    except json.JSONDecodeError as error:
        raise TokenizerError(f"{name}: line {error.lineno}: not JSON: {error.msg}") from error
    if not isinstance(parsed, dict):
        raise TokenizerError(f"{name}: a JSON {type(parsed).__name__}, not an object")
    return parsed


def describe(built: Any) -> dict[str, Any]:
    """The pipeline's own description, with `tokens`: id → text, added ones included."""
    described = json.loads(built.to_str())
    described["tokens"] = {token_id: token for token, token_id in built.get_vocab().items()}
    return described


def piece_bytes(described: dict[str, Any]) -> list[bytes]:
    """UTF-8 bytes by id: what the decoder makes of each token; none for specials and unused ids."""
    tokens: dict[int, str] = described["tokens"]
    added = {token["id"]: token for token in described["added_tokens"]}
    decoders = set(types(described["decoder"]))
    unknown = described["model"].get("unk_token")
    pieces = []
    for token_id in range(max(tokens) + 1):
        token = tokens.get(token_id, "")
        if token_id in added:
            content = added[token_id]["content"].encode("utf-8")
            pieces.append(b"" if added[token_id]["special"] else content)
        else:
            pieces.append(b"" if token == unknown else _token_bytes(token, decoders))
    return pieces


def changes_no_text(described: dict[str, Any]) -> bool:
    """Whether any text comes back as it was: byte-level BPE without normaliser or added space."""
    steps = list(flatten(described["pre_tokenizer"]))
    kinds = {step["type"] for step in steps}
    kept = {"ByteLevel", "Split", "Digits"}
    tokens = set(described["tokens"].values())
    return (
        described["model"]["type"] == "BPE"
        and list(types(described["decoder"])) == ["ByteLevel"]
        and not list(flatten(described["normalizer"]))
        and "ByteLevel" in kinds
        and kinds <= kept
        and not any(step.get("add_prefix_space") for step in steps)
        and not any(step.get("behavior") == "Removed" for step in steps)
        and not any(t["lstrip"] or t["rstrip"] for t in described["added_tokens"])
        and all(letter in tokens for letter in _BYTE_OF)
    )


def special_ids(described: dict[str, Any], config: dict[str, Any]) -> dict[str, int | None]:
    """Ids of the specials: named by a `tokenizer_config.json`, else by their usual names."""
    by_text = {token["content"]: token["id"] for token in described["added_tokens"]}
    special = {t["content"] for t in described["added_tokens"] if t["special"]}

    def find(key: str, usual: tuple[str, ...]) -> int | None:
        named = config.get(key)
        text = named.get("content") if isinstance(named, dict) else named
        if text in by_text:
            return by_text[text]
        return next((by_text[name] for name in usual if name in special), None)

    ids = {token: token_id for token_id, token in described["tokens"].items()}
    return {
        "bos_id": find("bos_token", _BOS_NAMES),
        "eos_id": find("eos_token", _EOS_NAMES),
        "pad_id": find("pad_token", _PAD_NAMES),
        "unk_id": ids.get(described["model"].get("unk_token")),
    }


def flatten(step: dict[str, Any] | None) -> Iterator[dict[str, Any]]:
    """The steps of a normaliser, pre-tokenizer or decoder; a sequence is taken apart."""
    if step is None:
        return
    for key in ("normalizers", "pretokenizers", "decoders"):
        if key in step:
            for inner in step[key]:
                yield from flatten(inner)
            return
    yield step


def types(step: dict[str, Any] | None) -> Iterator[str]:
    """Types of the steps."""
    return (inner["type"] for inner in flatten(step))


def _plain(built: Any) -> Any:
    built.encode_special_tokens = True
    built.no_truncation()
    built.no_padding()
    return built


def _merges(content: bytes, ids: dict[str, Any], name: str) -> list[tuple[str, str]]:
    try:
        lines = content.decode("utf-8").split("\n")
    except UnicodeDecodeError as error:
        raise TokenizerError(f"{name}: not UTF-8 text (byte {error.start})") from error
    pairs = []
    for number, line in enumerate(lines, 1):
        line = line.rstrip("\r")
        if not line or (number == 1 and line.startswith("#version")):
            continue
        parts = line.split(" ")
        if len(parts) != 2:
            raise TokenizerError(f"{name}: line {number}: {line!r} is not two tokens and a space")
        for token in (*parts, "".join(parts)):
            if token not in ids:
                raise TokenizerError(
                    f"{name}: line {number}: token {token!r} is not in the vocabulary of "
                    f"{len(ids)}; the two files do not belong together, or one is cut short"
                )
        pairs.append((parts[0], parts[1]))
    return pairs


def _token_bytes(token: str, decoders: set[str]) -> bytes:
    if "ByteLevel" in decoders:
        if all(letter in _BYTE_OF for letter in token):
            return bytes(_BYTE_OF[letter] for letter in token)
        return token.encode("utf-8")
    if "ByteFallback" in decoders and len(token) == 6 and token.startswith("<0x"):
        return bytes([int(token[3:5], 16)])
    if "WordPiece" in decoders:
        return token[2:].encode() if token.startswith("##") else b" " + token.encode()
    if "BPEDecoder" in decoders:
        return token.replace("</w>", " ").encode("utf-8")
    return token.replace(SPACE, " ").encode("utf-8")


def byte_letters() -> dict[str, int]:
    """Letter → byte of byte-level BPE: a printable Latin-1 byte is itself, the rest from U+0100."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printable]
    letters = {chr(byte): byte for byte in printable}
    return letters | {chr(0x100 + number): byte for number, byte in enumerate(others)}


_BYTE_OF = byte_letters()
