"""Attention of rows whose tokens lie over several devices (the mesh's context axis).

`attention.py` is what the model calls; `ring.py`, `ulysses.py` and `all_gather.py` are the methods,
`choose.py` picks one, `order.py` lays tokens out so that a causal ring has equal work everywhere, and
`blocks.py` is what a device computes of its own.
"""
