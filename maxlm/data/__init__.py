"""Text in, batches out: sources, tokenizers, token stores, mixtures, packing, the loader."""
