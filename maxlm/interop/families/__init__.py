"""The tables: per family, what its config.json says of our options and which tensors are ours."""
