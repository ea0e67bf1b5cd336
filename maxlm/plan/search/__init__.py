"""Which layout is fastest: arithmetic ranks, the compiler confirms."""
