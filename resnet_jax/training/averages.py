"""Averages of weights and statistics in the course of training."""

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from resnet_jax.training.state import Tree


def moving_average(average: Tree, new: Tree, step: jax.Array, decay: float) -> Tree:
    """Returns the exponential moving average after a step.

    Args:
      average: the average before the step.
      new: parameters and statistics after it.
      step: number of steps taken before it, int32 scalar.
      decay: share of the average that is kept.
    """
    # Until it is as long as its memory, it is the plain mean: the initial weights don't count.
    count = step.astype(jnp.float32)
    kept = jnp.minimum(decay, count / (count + 1))
    return _interpolate(average, new, kept)


def lookahead(
    slow: Tree, fast: Tree, step: jax.Array, total_steps: int, config: ConfigDict
) -> tuple[Tree, Tree]:
    """Returns slow and fast weights after a step ("Lookahead Optimizer", Zhang et al. 2019).

    Every `lookahead_steps` steps the slow weights move towards the fast ones, and the fast ones
    start anew from there. As in the speed records of Jordan (2024), the share that the slow ones
    keep grows with time, and statistics take part.

    Args:
      slow: slow parameters and statistics before the step.
      fast: parameters and statistics after it.
      step: number of steps taken with it, int32 scalar.
      total_steps: steps of the whole training.
      config: the group `optimizer` of a config.
    """
    ramp = (step / total_steps) ** config.lookahead_power
    kept = config.lookahead_decay**config.lookahead_steps * ramp
    due = step % config.lookahead_steps == 0
    moved = _interpolate(slow, fast, kept)

    def choose(then: Tree, otherwise: Tree) -> Tree:
        return jax.tree.map(lambda a, b: jnp.where(due, a, b), then, otherwise)

    return choose(moved, slow), choose(moved, fast)


def _interpolate(old: Tree, new: Tree, kept: jax.Array) -> Tree:
    return jax.tree.map(lambda a, b: a * kept + b * (1 - kept), old, new)
