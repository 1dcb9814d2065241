"""The steps of training and evaluation: pure functions of a batch of arrays.

They know no dataset, no device and no loop; `resnet_jax.training.driver` compiles and feeds them.
"""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp
import optax
from ml_collections import ConfigDict

from resnet_jax import randomness
from resnet_jax.data.augment import STRENGTHS, augment, normalize, resize
from resnet_jax.training import freezing
from resnet_jax.training.optimizers import Optimizer
from resnet_jax.training.state import Metrics, TrainState, Tree, moving_average

Hyperparameters = Mapping[str, jax.Array]


class Batch(flax.struct.PyTreeNode):
    """The images of one training step.

    Attributes:
      images: uint8 `[batch, height, width, channels]`, or what a frozen stage made of them.
      labels: int32 `[batch]`.
      indices: position of each image in the training set, int32 `[batch]`.
      epoch: the epoch, int32 scalar.
    """

    images: jax.Array
    labels: jax.Array
    indices: jax.Array
    epoch: jax.Array


class StepMetrics(flax.struct.PyTreeNode):
    """What one training step tells.

    Attributes:
      loss: mean loss of the batch, float32 scalar.
      gradient_norm: global norm of the gradient, float32 scalar.
    """

    loss: jax.Array
    gradient_norm: jax.Array

    def is_finite(self) -> jax.Array:
        """Returns whether both are finite, bool scalar."""
        return jnp.isfinite(self.loss) & jnp.isfinite(self.gradient_norm)


@dataclasses.dataclass(frozen=True)
class Network:
    """A module and what its images go through before it.

    Attributes:
      module: the module.
      config: the whole config.
      stage: the frozen stage whose cached features stand for images; 0: images are images.
    """

    module: nn.Module
    config: ConfigDict
    stage: int = 0

    def inputs(self, images: jax.Array) -> jax.Array:
        """Returns what the module takes for images that are not augmented.

        Args:
          images: uint8 `[batch, height, width, channels]`, or the features of the cached stage.
        """
        return images if self.stage else self.normalized(images.astype(jnp.float32) / 255)

    def normalized(self, images: jax.Array) -> jax.Array:
        """Returns normalised images of the size that the config names.

        Args:
          images: float32 `[batch, height, width, channels]` in [0, 1].
        """
        data = self.config.data
        images = normalize(images, data.mean, data.std)
        return resize(images, data.image_size) if data.image_size else images

    def apply(self, variables: Tree, x: jax.Array, **options: Any) -> Any:
        """Applies the module to `inputs`, or what comes after the cached stage to its features."""
        if self.stage:
            options |= {"method": "classify", "stage": self.stage}
        return self.module.apply(variables, x, **options)

    def logits(self, variables: Tree, images: jax.Array) -> jax.Array:
        """Returns the logits of images that are not augmented, float32 `[batch, num_classes]`.

        With the config's test-time augmentation "mirror" they are the mean of those of the image
        and of its mirror image.
        """
        inputs = self.inputs(images)
        logits = self.apply(variables, inputs, train=False)
        if self.config.evaluate.test_time_augmentation == "none":
            return logits
        return 0.5 * (logits + self.apply(variables, inputs[:, :, ::-1], train=False))


TrainStep = Callable[
    [TrainState, Batch, Hyperparameters, jax.Array], tuple[TrainState, StepMetrics]
]


def make_train_step(network: Network, optimizer: Optimizer) -> TrainStep:
    """Returns `train_step(state, batch, hyperparameters, key) -> (state, metrics)`.

    The key is that of the seed; all randomness is a function of it and of `state.step`. The
    hyperparameters are numbers by the names of `resnet_jax.training.hyperparameters`.
    """
    config = network.config

    def train_step(
        state: TrainState, batch: Batch, hyperparameters: Hyperparameters, key: jax.Array
    ) -> tuple[TrainState, StepMetrics]:
        loss_fn = make_loss(network, state, batch, hyperparameters, key)
        (loss, (metrics, batch_stats)), grads = jax.value_and_grad(loss_fn, has_aux=True)(
            state.params
        )
        tx = optimizer.build(hyperparameters)
        updates, opt_state = tx.update(grads, state.opt_state, state.params)
        new = {"params": optax.apply_updates(state.params, updates), "batch_stats": batch_stats}
        average = state.average
        if config.optimizer.ema_decay:
            decay = hyperparameters["optimizer.ema_decay"]
            count, every = state.step - state.skipped, config.optimizer.accumulate_steps
            average = moving_average(average, new, count // every, decay)
            if every > 1:
                is_update = (count + 1) % every == 0
                choose = lambda a, b: jnp.where(is_update, a, b)  # noqa: E731
                average = jax.tree.map(choose, average, state.average)
        told = StepMetrics(loss, optax.tree.norm(grads))
        before = state.replace(step=state.step + 1)
        after = before.replace(
            **new, opt_state=opt_state, average=average, metrics=state.metrics.merge(metrics)
        )
        # The numbers are float32 arrays, which make float32 of what is bfloat16.
        after = jax.tree.map(lambda a, b: a.astype(b.dtype), after, before)
        if config.on_nan == "skip":
            before = before.replace(skipped=state.skipped + 1)
            is_finite = told.is_finite()
            after = jax.tree.map(lambda a, b: jnp.where(is_finite, a, b), after, before)
        return after, told

    return train_step


def make_loss(
    network: Network,
    state: TrainState,
    batch: Batch,
    hyperparameters: Hyperparameters,
    key: jax.Array,
) -> Callable[[Tree], tuple[jax.Array, tuple[Metrics, Tree]]]:
    """Returns a batch's mean loss as a function of the parameters.

    Beside the loss it returns the metrics of the batch and the new statistics.
    """
    if network.stage:
        images = batch.images
        targets = jax.nn.one_hot(batch.labels, network.config.model.num_classes)
    else:
        images, targets = augmented(network.config, state.step, batch, hyperparameters, key)
        images = network.normalized(images)
    frozen = network.config.optimizer.frozen
    dropout_key = randomness.derive(key, randomness.Purpose.DROPOUT, state.step)

    def loss_fn(params: Tree) -> tuple[jax.Array, tuple[Metrics, Tree]]:
        params = freezing.stop_frozen(params, frozen)
        with freezing.frozen_norms(frozen):
            logits, mutated = network.apply(
                {"params": params, "batch_stats": state.batch_stats},
                images,
                train=True,
                mutable=["batch_stats"],
                rngs={"dropout": dropout_key},
            )
        smoothing = hyperparameters.get("loss.label_smoothing")
        smoothed = targets if smoothing is None else optax.smooth_labels(targets, smoothing)
        losses = optax.softmax_cross_entropy(logits, smoothed)
        labels = targets.argmax(-1).astype(jnp.int32)  # of mixed images, the larger share
        metrics = Metrics.single_from_model_output(losses=losses, logits=logits, labels=labels)
        return losses.mean(), (metrics, dict(mutated).get("batch_stats", {}))

    return loss_fn


def eval_step(
    network: Network, variables: Tree, images: jax.Array, labels: jax.Array, mask: jax.Array
) -> Metrics:
    """Returns loss and accuracy over the images of a batch that count.

    Args:
      network: the model.
      variables: its parameters and statistics.
      images: uint8 `[batch, height, width, channels]`, or cached features.
      labels: int32 `[batch]`.
      mask: which images count, bool `[batch]`.
    """
    logits = network.logits(variables, images)
    losses = optax.softmax_cross_entropy_with_integer_labels(logits, labels)
    return Metrics.single_from_model_output(losses=losses, logits=logits, labels=labels, mask=mask)


def augmented(
    config: ConfigDict,
    step: jax.Array,
    batch: Batch,
    hyperparameters: Hyperparameters,
    key: jax.Array,
    purpose: randomness.Purpose = randomness.Purpose.AUGMENT,
) -> tuple[jax.Array, jax.Array]:
    """Returns the images of a step, float32 in [0, 1], and the targets that the config makes."""
    return augment(
        randomness.derive(key, purpose, step),
        batch.images.astype(jnp.float32) / 255,
        batch.labels,
        batch.indices,
        batch.epoch,
        config.augment,
        {name: hyperparameters.get(f"augment.{name}", 0.0) for name in STRENGTHS},
        mean=config.data.mean,
        num_classes=config.model.num_classes,
        flip_key=randomness.derive(key, randomness.Purpose.FLIP),
    )
