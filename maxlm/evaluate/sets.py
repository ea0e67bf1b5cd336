"""The named evaluation sets of a config, opened: each gives its batches on a mesh, in order."""

from __future__ import annotations

from collections.abc import Iterator

from jax.sharding import Mesh

from maxlm.batch import Batch
from maxlm.config.schema import EvalSetConfig, RunConfig
from maxlm.data.store import TokenSplit, TokenStore
from maxlm.data.windows import eval_batches
from maxlm.errors import DataError, TokenizerError
from maxlm.parallel.mesh import batch_multiple
from maxlm.parallel.placement import local_rows, place_batch


class EvalSet:
    """One split of a store, cut into windows that do not overlap."""

    def __init__(self, name: str, config: EvalSetConfig, run: RunConfig, tokenizer_hash: str):
        """Open the store.

        Raises:
            DataError: the store or split cannot be read.
            TokenizerError: it was written with another tokenizer than the run's.
        """
        store = TokenStore(config.store)
        found = store.tokenizer().hash
        if found != tokenizer_hash:
            raise TokenizerError(
                f"eval.sets.{name}: {config.store} was written with another tokenizer "
                f"({found[:12]}…) than the run's ({tokenizer_hash[:12]}…); tokenize it again with "
                "the run's (RUN/tokenizer)"
            )
        self.name = name
        self.tokens: TokenSplit = store.split(config.split)
        if self.tokens.num_tokens < 2:
            raise DataError(f"eval.sets.{name}: split '{config.split}' of {config.store} is empty")
        self._length = config.length or run.data.length
        self._max_tokens = config.max_tokens
        self._batch_size = run.eval.batch_size or run.data.batch_size or 1

    def batches(self, mesh: Mesh) -> Iterator[Batch]:
        """Batches on the mesh that hold every target once; padded up to a whole batch."""
        multiple = batch_multiple(mesh)
        size = -(-self._batch_size // multiple) * multiple
        rows = local_rows(size, mesh)
        for batch in eval_batches(self.tokens, self._length, size, self._max_tokens, rows):
            yield place_batch(batch, size, rows, mesh)


def open_sets(config: RunConfig, tokenizer_hash: str) -> list[EvalSet]:
    """Open every set of a config. Raises like EvalSet."""
    return [EvalSet(name, s, config, tokenizer_hash) for name, s in config.eval.sets.items()]
