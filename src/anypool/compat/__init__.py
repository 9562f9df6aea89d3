"""Other frameworks' pooling rules, without the framework: ``anypool.compat.onnx``, ``.tf`` and ``.flax``.

Each module has a framework's functions, with its argument names and defaults, for every array that `anypool.pool`
takes. A function only translates: which windows, which reduction, how positions are counted. What is not a question of
translation (NaN, ties, integers, windows without an input) follows anypool's rules; docs/semantics.md says where a
framework differs. `anypool.vjp` and `anypool.explain` take these functions, too.

Nothing here is imported by ``import anypool``, and none of it imports the framework.
"""
