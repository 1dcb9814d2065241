"""Random keys: all randomness of a run is a function of (seed, purpose, epoch or step)."""

import enum

import jax


class Purpose(enum.IntEnum):
    """What a key is for; the numbers are part of every result, so they never change."""

    INIT = 0
    ORDER = 1
    AUGMENT = 2
    DROPOUT = 3
    FLIP = 4
    VALIDATION = 5
    CROP = 6


def derive(seed_key: jax.Array, purpose: Purpose, index: int | jax.Array = 0) -> jax.Array:
    """Returns the key of a purpose at an epoch or step.

    Args:
      seed_key: `jax.random.key(seed)`.
      purpose: what the key is for.
      index: epoch or step, int or int32 scalar.
    """
    return jax.random.fold_in(jax.random.fold_in(seed_key, purpose), index)
