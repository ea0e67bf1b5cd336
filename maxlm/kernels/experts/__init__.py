"""Tokens to their experts and back: sorted by expert, over the mesh where the experts lie over it.

`dispatch.apply_experts` is what the model calls. On one device, `sorting` brings the rows of each
expert together and a grouped matmul does the rest. Where experts lie over several devices,
`exchange` moves rows between them. With a capacity, `capacity` fills a fixed number of places per
expert instead.
"""
