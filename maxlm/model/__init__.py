"""One decoder, told by a config what family it is.

Array shapes in comments use one legend throughout the project:

    B batch          T length            S source length (keys, when they differ from queries)
    D embed          F mlp               V vocab; in attention, width of a value's head
    H query heads    K key-value heads   C head_dim
    L layers         E experts
"""
