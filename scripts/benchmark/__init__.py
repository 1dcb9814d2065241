"""The benchmark: this library beside PyTorch, by `python scripts/benchmark`.

`training.py` measures models and `decode.py` the reading of image files; each starts its
`contestants.py`, processes of `training_jax.py` and the like, and `tables.py` makes Markdown of
what they found.
"""
