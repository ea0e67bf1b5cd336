"""Attention: one definition, one file per implementation, one chooser.

`attend.attention` is what a model calls. `reference` is the definition, `chunked`, `splash` and
`cudnn` are faster, each where it can run, and `choose` picks among them.
"""
