"""From text sources to a token store: `tokenize` in `maxlm.data.tokenize.run`."""
