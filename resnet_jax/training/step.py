"""Training and evaluation steps: pure functions, with jit and sharding applied in one place."""

import copy
import functools
from collections.abc import Callable
from typing import Any, cast

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from ml_collections import ConfigDict

from resnet_jax import randomness as keys
from resnet_jax.data.augment import STRENGTHS, augment, normalize, resize
from resnet_jax.data.datasets import Examples
from resnet_jax.data.order import padded_batches
from resnet_jax.training import averages, faults, whitening
from resnet_jax.training import freezing as transfer
from resnet_jax.training import optimizers as optim
from resnet_jax.training.state import Sums, TrainState, Tree
from resnet_jax.training.test_time_augmentation import mean_logits


def cross_entropy(logits: jax.Array, targets: jax.Array, label_smoothing: float) -> jax.Array:
    """Returns each image's loss, float32 `[batch]`.

    Args:
      logits: float32 `[batch, num_classes]`.
      targets: weights of the classes, float32 `[batch, num_classes]`.
      label_smoothing: share of each target spread over all classes (Szegedy et al. 2016).
    """
    smooth = optax.smooth_labels(targets, label_smoothing) if label_smoothing else targets
    return optax.softmax_cross_entropy(logits, smooth)


class Steps:
    """The compiled functions of one run.

    Attributes:
      mesh: the devices, with the axis "data" over which batches are split.
    """

    def __init__(
        self,
        model: nn.Module,
        optimizer: optax.GradientTransformation | None,
        config: ConfigDict,
        steps_per_epoch: int,
        mesh: Mesh | None = None,
        features: bool = False,
    ) -> None:
        """Binds what a run is made of; nothing is compiled yet.

        Args:
          model: the module.
          optimizer: its optimizer; None: for evaluation only.
          config: the whole config.
          steps_per_epoch: number of training steps in an epoch.
          mesh: the devices; None: all of them.
          features: whether images will be the features of the config's cached stage.
        """
        self.mesh = mesh or Mesh(np.array(jax.devices()), ("data",))
        self._model = model
        self._optimizer = optimizer
        self._config = config
        stage = config.init.cached_stage if features else 0
        self._start: dict[str, Any] = {"stage": stage, "method": "classify"} if stage else {}
        self._steps_per_epoch = steps_per_epoch
        self._seed_key = jax.random.key(config.seed)
        self._train = jax.jit(self._train_steps, donate_argnums=0)
        self._score = jax.jit(self._eval_steps, donate_argnums=0)
        self._gradients = jax.jit(self._batch_gradients)
        self._classify = jax.jit(lambda *arguments: jax.nn.softmax(self._logits(*arguments)))

    def with_seed(self, seed: int) -> "Steps":
        """Returns the same compiled functions, with the randomness of another seed."""
        other = copy.copy(self)
        other._seed_key = jax.random.key(seed)
        return other

    @property
    def replicated(self) -> NamedSharding:
        """Sharding of what every device holds in full."""
        return NamedSharding(self.mesh, PartitionSpec())

    def train(
        self,
        state: TrainState,
        examples: Examples,
        indices: np.ndarray,
        learning_rates: np.ndarray,
    ) -> tuple[TrainState, Sums, jax.Array]:
        """Takes some training steps in one dispatch; `state` is donated.

        Args:
          state: the state before.
          examples: the training images, on device.
          indices: int32 `[steps, batch]`.
          learning_rates: float32 `[steps]`.

        Returns:
          The state after, a copy of its sums, and what was not finite in each step, int32
          `[steps]`; see `resnet_jax.training.faults`.
        """
        rates = jax.device_put(np.asarray(learning_rates, np.float32), self.replicated)
        return self._train(state, self._seed_key, examples, self._split(indices), rates)

    def evaluate(self, variables: dict[str, Tree], examples: Examples, batch_size: int) -> Sums:
        """Scores every image exactly once, for any batch size and number of devices.

        Args:
          variables: the model's parameters and statistics.
          examples: the images, on device.
          batch_size: images per evaluation step; rounded up to a multiple of the devices.

        Returns:
          The sums over all images.
        """
        devices = self.mesh.size
        batch_size = -(-min(batch_size, len(examples)) // devices) * devices
        sums = jax.device_put(Sums.zero(), self.replicated)
        batches = list(padded_batches(len(examples), batch_size))
        # A loop would cost XLA's CPU backend its fast convolutions.
        usual = 1 if self.mesh.devices.flat[0].platform == "cpu" else len(batches)
        size = self._config.evaluate.batches_per_dispatch or usual
        for first in range(0, len(batches), size):
            indices, masks = map(np.stack, zip(*batches[first : first + size], strict=True))
            sums = self._score(sums, variables, examples, self._split(indices), self._split(masks))
        return sums

    def probabilities(self, variables: dict[str, Tree], images: np.ndarray) -> np.ndarray:
        """Returns the probability of each class for each image, float32 `[images, num_classes]`.

        Args:
          variables: the model's parameters and statistics.
          images: uint8 `[images, height, width, channels]`.
        """
        size = self._config.evaluate.batch_size
        parts = [images[start : start + size] for start in range(0, len(images), size)]
        return np.concatenate([np.asarray(self._classify(variables, part)) for part in parts])

    def gradients(self, state: TrainState, examples: Examples, indices: np.ndarray) -> Tree:
        """Returns the gradients of the step that follows `state`, for histograms.

        Args:
          state: the state, which is kept.
          examples: the training images, on device.
          indices: int32 `[batch]`.
        """
        return self._gradients(state, self._seed_key, examples, self._split(indices))

    def _split(self, array: np.ndarray) -> jax.Array:
        """Puts an array on the devices, its last axis split over them where it divides."""
        axis = "data" if array.shape[-1] % self.mesh.size == 0 else None
        spec = PartitionSpec(*[None] * (array.ndim - 1), axis)
        return jax.device_put(array, NamedSharding(self.mesh, spec))

    def _train_steps(
        self,
        state: TrainState,
        seed_key: jax.Array,
        examples: Examples,
        indices: jax.Array,
        learning_rates: jax.Array,
    ) -> tuple[TrainState, Sums, jax.Array]:
        step = functools.partial(self._train_step, seed_key=seed_key, examples=examples)
        if len(indices) == 1:  # a loop would cost XLA's CPU backend its fast convolutions
            state, fault = step(state, indices[0], learning_rates[0])
            return state, state.sums, fault[None]
        state, found = jax.lax.scan(
            lambda carry, xs: step(carry, *xs), state, (indices, learning_rates)
        )
        return state, state.sums, found

    def _train_step(
        self,
        state: TrainState,
        indices: jax.Array,
        learning_rate: jax.Array,
        *,
        seed_key: jax.Array,
        examples: Examples,
    ) -> tuple[TrainState, jax.Array]:
        loss_fn = self._loss_fn(state, seed_key, examples, indices)
        (loss, (sums, batch_stats)), grads = jax.value_and_grad(loss_fn, has_aux=True)(state.params)
        opt_state = optim.set_learning_rate(state.opt_state, learning_rate)
        assert self._optimizer is not None, "these steps are for evaluation only"
        updates, opt_state = self._optimizer.update(grads, opt_state, state.params)
        epoch = state.step / self._steps_per_epoch
        updates = optim.stop_finished(updates, epoch, self._config.optimizer.frozen_after)
        params = optax.apply_updates(state.params, updates)
        average, params, batch_stats = self._averaged(state, params, batch_stats)
        before = state.replace(step=state.step + 1, sums=self._epoch_sums(state))
        after = before.replace(
            params=params,
            batch_stats=batch_stats,
            opt_state=opt_state,
            average=average,
            sums=before.sums.plus(sums),
        )
        return faults.settle(before, after, loss, grads, skip=self._config.on_nan == "skip")

    def _loss_fn(
        self, state: TrainState, seed_key: jax.Array, examples: Examples, indices: jax.Array
    ) -> Callable[[Tree], tuple[jax.Array, tuple[Sums, Tree]]]:
        """Returns the loss of a batch as a function of the parameters."""
        config, frozen = self._config, self._config.optimizer.frozen
        images, targets = self._augmented(state, seed_key, examples, indices)
        dropout_key = keys.derive(seed_key, keys.Purpose.DROPOUT, state.step)

        def loss_fn(params: Tree) -> tuple[jax.Array, tuple[Sums, Tree]]:
            params = transfer.stop_frozen(params, frozen)
            with transfer.frozen_norms(frozen):
                logits, mutated = self._model.apply(
                    {"params": params, "batch_stats": state.batch_stats},
                    images,
                    train=True,
                    mutable=["batch_stats"],
                    rngs={"dropout": dropout_key},
                    **self._start,
                )
            losses = cross_entropy(logits, targets, config.loss.label_smoothing)
            sums = _sums(losses, logits, targets.argmax(-1), jnp.ones_like(losses))
            return losses.mean(), (sums, dict(mutated).get("batch_stats", {}))

        return loss_fn

    def _augmented(
        self, state: TrainState, seed_key: jax.Array, examples: Examples, indices: jax.Array
    ) -> tuple[jax.Array, jax.Array]:
        """Returns what the model takes for a training batch, and the targets."""
        config, labels = self._config, examples.labels[indices]
        if self._start:
            return examples.images[indices], jax.nn.one_hot(labels, config.model.num_classes)
        images, targets = augment(
            keys.derive(seed_key, keys.Purpose.AUGMENT, state.step),
            examples.images[indices].astype(jnp.float32) / 255,
            labels,
            indices,
            state.step // self._steps_per_epoch,
            config.augment,
            {name: config.augment[name] for name in STRENGTHS},
            mean=config.data.mean,
            num_classes=config.model.num_classes,
            flip_key=keys.derive(seed_key, keys.Purpose.FLIP),
        )
        return self._normalized(images), targets

    def _normalized(self, images: jax.Array) -> jax.Array:
        """Returns normalised images, `[batch, image_size, image_size, channels]`."""
        data = self._config.data
        images = normalize(images, data.mean, data.std)
        return resize(images, data.image_size) if data.image_size else images

    def inputs(self, images: jax.Array) -> jax.Array:
        """Returns what the model takes for images that are not augmented.

        Args:
          images: uint8 `[batch, height, width, channels]`, or the features of a cached stage.
        """
        return images if self._start else self._normalized(images.astype(jnp.float32) / 255)

    def whitened(self, state: TrainState, examples: Examples) -> TrainState:
        """Returns a state before its first step, with its first layer made as the config says.

        Args:
          state: the state.
          examples: the training images, on device.
        """
        init = self._config.init
        if not init.whitening_images:
            return state
        images = self.inputs(jnp.asarray(examples.images[: init.whitening_images]))
        return whitening.whiten(state, images, init.whitening_epsilon)

    def _batch_gradients(
        self, state: TrainState, seed_key: jax.Array, examples: Examples, indices: jax.Array
    ) -> Tree:
        loss_fn = self._loss_fn(state, seed_key, examples, indices)
        return jax.grad(loss_fn, has_aux=True)(state.params)[0]

    def _averaged(
        self, state: TrainState, params: Tree, batch_stats: Tree
    ) -> tuple[Tree, Tree, Tree]:
        """Returns the average, the parameters and the statistics after a step."""
        optimizer, new = self._config.optimizer, {"params": params, "batch_stats": batch_stats}
        average = state.average
        if optimizer.ema_decay:
            average = averages.moving_average(average, new, state.step, optimizer.ema_decay)
        elif optimizer.lookahead_steps:
            total = self._config.num_epochs * self._steps_per_epoch
            average, new = averages.lookahead(average, new, state.step + 1, total, optimizer)
        return average, new["params"], new["batch_stats"]

    def _epoch_sums(self, state: TrainState) -> Sums:
        """Returns the sums of the epoch so far, which start anew with each epoch."""
        first = state.step % self._steps_per_epoch == 0
        sums = jax.tree.map(lambda a: jnp.where(first, 0, a), state.sums)
        return sums.replace(bad_step=state.sums.bad_step, skipped=state.sums.skipped)

    def _eval_steps(
        self,
        sums: Sums,
        variables: dict[str, Tree],
        examples: Examples,
        indices: jax.Array,
        masks: jax.Array,
    ) -> Sums:
        def step(sums: Sums, indices: jax.Array, mask: jax.Array) -> Sums:
            return sums.plus(self._eval_step(variables, examples, indices, mask))

        if len(indices) == 1:
            return step(sums, indices[0], masks[0])
        return jax.lax.scan(lambda sums, xs: (step(sums, *xs), None), sums, (indices, masks))[0]

    def _eval_step(
        self, variables: dict[str, Tree], examples: Examples, indices: jax.Array, mask: jax.Array
    ) -> Sums:
        logits = self._logits(variables, examples.images[indices])
        labels = examples.labels[indices]
        losses = optax.softmax_cross_entropy_with_integer_labels(logits, labels)
        return _sums(losses, logits, labels, mask)

    def _logits(self, variables: dict[str, Tree], images: jax.Array) -> jax.Array:
        def apply(images: jax.Array) -> jax.Array:
            logits = self._model.apply(variables, images, train=False, **self._start)
            return cast(jax.Array, logits)

        augmentation = self._config.evaluate.test_time_augmentation
        return mean_logits(apply, self.inputs(images), augmentation)


def _sums(losses: jax.Array, logits: jax.Array, labels: jax.Array, mask: jax.Array) -> Sums:
    correct = (logits.argmax(-1) == labels) * mask
    return Sums((losses * mask).sum(), correct.sum(), mask.sum(), jnp.array(0, jnp.int32))
