"""The benchmark: this library beside PyTorch, by `python scripts/benchmark`.

`training.py` measures models, `trials.py` trials of a search side by side, and `decode.py` the
reading of image files; `agree.py` compares a GPU's training with the CPU's. Each starts its
`contestants.py`, processes of `training_jax.py` and the like, and `tables.py` makes Markdown of
what they found.
"""
