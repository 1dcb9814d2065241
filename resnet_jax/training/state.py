"""The state of a training: what a checkpoint holds."""

from typing import Any

import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
import optax
from clu import metrics

from resnet_jax.trees import named_leaves

Tree = Any


@flax.struct.dataclass
class Metrics(metrics.Collection):
    """Loss and accuracy over the images of an epoch or of an evaluation."""

    loss: metrics.Average.from_output("losses")  # type: ignore[valid-type]
    accuracy: metrics.Accuracy

    def means(self) -> dict[str, float]:
        """Returns the mean loss and the accuracy, in percent; zeros if there was no image."""
        count = max(int(self.accuracy.count), 1)
        loss, correct = float(self.loss.total), float(self.accuracy.total)
        return {"loss": loss / count, "accuracy": 100 * correct / count}


class TrainState(flax.struct.PyTreeNode):
    """Everything that a training step reads and writes; a checkpoint holds exactly this.

    Attributes:
      step: number of steps taken, int32 scalar.
      params: the model's parameters.
      batch_stats: its running statistics; empty for a model without any.
      opt_state: the optimizer's state.
      average: moving average of params and batch_stats; empty if there is none.
      metrics: loss and accuracy over the images of the epoch so far.
      skipped: number of steps that were skipped since they were not finite, int32 scalar.
    """

    step: jax.Array
    params: Tree
    batch_stats: Tree
    opt_state: Tree
    average: Tree
    metrics: Metrics
    skipped: jax.Array

    def variables(self) -> dict[str, Tree]:
        """Returns the variables to evaluate: the average if there is one."""
        current = {"params": self.params, "batch_stats": self.batch_stats}
        if not self.average:
            return current
        return jax.tree.map(lambda a, b: a.astype(b.dtype), dict(self.average), current)


def moving_average(average: Tree, new: Tree, step: jax.Array, decay: jax.Array) -> Tree:
    """Returns the exponential moving average after a step.

    Args:
      average: the average before the step.
      new: parameters and statistics after it.
      step: number of updates before it, int32 scalar.
      decay: share of the average that is kept, float32 scalar.
    """
    # Until it is as long as its memory, it is the plain mean: the initial weights don't count.
    count = step.astype(jnp.float32)
    kept = jnp.minimum(decay, count / (count + 1))
    return jax.tree.map(lambda a, b: a * kept + b * (1 - kept), average, new)


def not_finite(state: TrainState) -> str:
    """Returns the path of the first leaf of a state that is not finite; empty: there is none."""
    for path, leaf in named_leaves(state):
        is_float = jnp.issubdtype(leaf.dtype, jnp.inexact)
        if is_float and not np.isfinite(np.asarray(leaf, np.float32)).all():
            return path
    return ""


def initial_state(
    model: nn.Module,
    optimizer: optax.GradientTransformation,
    image_shape: tuple[int, ...],
    averaged: bool,
    key: jax.Array,
    weights: dict[str, Tree] | None = None,
) -> TrainState:
    """Returns the state before the first step.

    Args:
      model: the module to train.
      optimizer: its optimizer.
      image_shape: `(height, width, channels)` of what the model takes.
      averaged: whether a moving average is kept.
      key: key of the random weights.
      weights: the model's variables; None: random ones.
    """
    variables = weights or model.init(key, jnp.zeros((1, *image_shape)), train=False)
    evaluated = {"params": variables["params"], "batch_stats": variables.get("batch_stats", {})}
    return TrainState(
        step=jnp.array(0, jnp.int32),
        **evaluated,
        opt_state=optimizer.init(evaluated["params"]),
        # The small steps of an average would be lost in bfloat16.
        average=jax.tree.map(lambda a: jnp.array(a, jnp.float32), evaluated) if averaged else {},
        metrics=Metrics.empty(),
        skipped=jnp.array(0, jnp.int32),
    )
