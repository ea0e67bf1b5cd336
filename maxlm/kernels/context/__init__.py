"""Attention of rows whose tokens lie over several devices (the mesh's context axis).

`attention.py` is what the model calls; `ring.py`, `ulysses.py` and `all_gather.py` are the methods,
`choose.py` picks one, and `order.py` lays tokens out so that a causal ring has equal work everywhere.
What a device computes of its own is in `kernels/attention`: `online_softmax.py` for `ring`, `parts.py` for
`all_gather`, and for `ulysses` any implementation.
"""
