"""The state of a training: what a checkpoint holds."""

import functools
from typing import Any

import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp
import optax
from ml_collections import ConfigDict

from resnet_jax import randomness as keys

Tree = Any


class Sums(flax.struct.PyTreeNode):
    """What is added up over the images of an epoch or of an evaluation.

    Attributes:
      loss: sum of the losses, float32 scalar.
      correct: number of images classified correctly, float32 scalar.
      count: number of images, float32 scalar.
      bad_step: first step, from 1, that was not finite, int32 scalar, or the newest one where such
        steps are skipped; -1: none.
      skipped: number of steps that were skipped in all epochs, int32 scalar; empty where a step
        that is not finite ends the run.
    """

    loss: jax.Array
    correct: jax.Array
    count: jax.Array
    bad_step: jax.Array
    skipped: Tree = flax.struct.field(default_factory=dict)

    @classmethod
    def zero(cls, skipping: bool = False) -> "Sums":
        """Returns the sums over nothing.

        Args:
          skipping: whether skipped steps are to be counted.
        """
        skipped: Tree = jnp.array(0, jnp.int32) if skipping else {}
        return cls(jnp.zeros(()), jnp.zeros(()), jnp.zeros(()), jnp.array(-1, jnp.int32), skipped)

    def plus(self, other: "Sums") -> "Sums":
        """Returns the sums over further images; what is told of steps stays."""
        loss, correct, count = self.loss + other.loss, self.correct + other.correct, other.count
        return self.replace(loss=loss, correct=correct, count=self.count + count)

    def means(self) -> dict[str, float]:
        """Returns the mean loss and the accuracy, in percent; zeros if all steps were skipped."""
        count = max(float(self.count), 1.0)
        return {"loss": float(self.loss) / count, "accuracy": 100 * float(self.correct) / count}


class TrainState(flax.struct.PyTreeNode):
    """Everything that a training step reads and writes; a checkpoint holds exactly this.

    Attributes:
      step: number of steps taken, int32 scalar.
      params: the model's parameters.
      batch_stats: its running statistics; empty for a model without any.
      opt_state: the optimizer's state, hyper-parameters included.
      average: moving average of params and batch_stats, or lookahead's slow ones; empty if there
        is neither.
      sums: sums over the images of the epoch so far.
    """

    step: jax.Array
    params: Tree
    batch_stats: Tree
    opt_state: Tree
    average: Tree
    sums: Sums

    def variables(self) -> dict[str, Tree]:
        """Returns the variables to evaluate: the average if there is one."""
        return dict(self.average or {"params": self.params, "batch_stats": self.batch_stats})


def create_state(
    model: nn.Module,
    optimizer: optax.GradientTransformation,
    config: ConfigDict,
    image_shape: tuple[int, ...],
    weights: dict[str, Tree] | None = None,
) -> TrainState:
    """Returns the state before the first step.

    Args:
      model: the module to train.
      optimizer: its optimizer.
      config: the whole config.
      image_shape: `(height, width, channels)`.
      weights: the model's variables; None: random ones.
    """
    create = functools.partial(initial_state, model, optimizer, config, image_shape)
    # It runs once: to optimise it in full would take longer than it runs.
    compiled = jax.jit(create, compiler_options={"xla_backend_optimization_level": 1})
    return compiled(keys.derive(jax.random.key(config.seed), keys.Purpose.INIT), weights)


def state_template(
    model: nn.Module,
    optimizer: optax.GradientTransformation,
    config: ConfigDict,
    image_shape: tuple[int, ...],
) -> TrainState:
    """Returns the shapes and dtypes of `create_state`, at no cost."""
    create = functools.partial(initial_state, model, optimizer, config, image_shape)
    return jax.eval_shape(create, jax.random.key(config.seed), None)


def initial_state(
    model: nn.Module,
    optimizer: optax.GradientTransformation,
    config: ConfigDict,
    image_shape: tuple[int, ...],
    key: jax.Array,
    weights: dict[str, Tree] | None = None,
) -> TrainState:
    """Returns the state before the first step, as `create_state` does, for use inside `jit`.

    Args:
      model: the module to train.
      optimizer: its optimizer.
      config: the whole config.
      image_shape: `(height, width, channels)`.
      key: key of the random weights.
      weights: the model's variables; None: random ones.
    """
    variables = weights or model.init(key, jnp.zeros((1, *image_shape)), train=False)
    params, batch_stats = variables["params"], variables.get("batch_stats", {})
    averaged = config.optimizer.ema_decay or config.optimizer.lookahead_steps
    return TrainState(
        step=jnp.array(0, jnp.int32),
        params=params,
        batch_stats=batch_stats,
        opt_state=optimizer.init(params),
        average=_average(params, batch_stats) if averaged else {},
        sums=Sums.zero(skipping=config.on_nan == "skip"),
    )


def _average(params: Tree, batch_stats: Tree) -> dict[str, Tree]:
    return jax.tree.map(jnp.copy, {"params": params, "batch_stats": batch_stats})
