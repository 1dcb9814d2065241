"""Averages of weights and statistics in the course of training."""

import jax
import jax.numpy as jnp

from resnet_jax.training.state import Tree


def moving_average(average: Tree, new: Tree, step: jax.Array, decay: jax.Array) -> Tree:
    """Returns the exponential moving average after a step.

    Args:
      average: the average before the step.
      new: parameters and statistics after it.
      step: number of steps before it that were not skipped, int32 scalar.
      decay: share of the average that is kept, float32 scalar.
    """
    # Until it is as long as its memory, it is the plain mean: the initial weights don't count.
    count = step.astype(jnp.float32)
    kept = jnp.minimum(decay, count / (count + 1))
    return jax.tree.map(lambda a, b: a * kept + b * (1 - kept), average, new)
