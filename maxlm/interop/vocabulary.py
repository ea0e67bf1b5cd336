"""Whether a tokenizer and a model are of one vocabulary."""

from __future__ import annotations

from maxlm.errors import TokenizerError


def check_vocabulary(rows: int, ids: int, where: str) -> None:
    """Refuse a tokenizer that the model's embeddings were not made for.

    Published models pad their tables (Qwen2.5-7B: 399 rows of 152,064), so that some rows more than ids
    are as it should be: up to a fiftieth of the ids, or 128.

    Args:
        rows: of the embedding table.
        ids: of the tokenizer.
        where: the tokenizer's path, for the message.

    Raises:
        TokenizerError: with both numbers.
    """
    most = ids + max(128, ids // 50)
    if ids <= rows <= most:
        return
    what = "fewer rows than" if rows < ids else "far more rows than"
    raise TokenizerError(
        f"{where}: this tokenizer has {ids:,} ids, and the model's vocabulary (vocab_size) is "
        f"{rows:,}: {what} the tokenizer needs: it is another model's tokenizer; name the right one "
        "with --tokenizer"
    )
