"""Compiles the training step, with sharding applied in one place, and feeds it."""

import dataclasses
import functools
import operator
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from ml_collections import ConfigDict

from resnet_jax.data.augment import STRENGTHS
from resnet_jax.data.datasets import Examples
from resnet_jax.data.streams import Stream
from resnet_jax.randomness import Purpose
from resnet_jax.training.devices import Devices
from resnet_jax.training.hyperparameters import hyperparameters, shared, structure
from resnet_jax.training.optimizers import Optimizer
from resnet_jax.training.state import Metrics, TrainState, Tree
from resnet_jax.training.step import (
    Batch,
    Hyperparameters,
    Network,
    StepMetrics,
    TrainStep,
    augmented,
    make_loss,
    make_train_step,
)

# The arguments of `Trainer.train`, and what it returns.
Call = tuple[TrainState, Examples, np.ndarray, int, np.ndarray, dict[str, float], int]
Taken = tuple[TrainState, Metrics, StepMetrics]


class Trainer:
    """The compiled training step of a run: one program, and one for a short last batch.

    Attributes:
      key: what the program depends on; trainings that have it in common differ in numbers only.
      steps_per_dispatch: largest number of steps that one call takes.
    """

    def __init__(
        self,
        network: Network,
        optimizer: Optimizer,
        devices: Devices,
        steps_per_epoch: int,
        examples: Examples | Stream | None = None,
    ) -> None:
        """Binds what a run is made of; nothing is compiled yet.

        Args:
          network: the module, and what its images go through.
          optimizer: its optimizer.
          devices: the devices.
          steps_per_epoch: training steps in an epoch.
          examples: where training images will come from, if that may be a stream.
        """
        config = network.config
        devices.check_batch_size(config.batch_size)
        usual = 1 if devices.on_cpu else 50
        if isinstance(examples, Stream):
            steps_per_epoch = 1  # in a dispatch: images of more are not there yet
            if examples.crops:
                config = config.copy_and_resolve_references()
                with config.unlocked():
                    config.augment.resized_crop = 0.0
                network = dataclasses.replace(network, config=config)
        self.steps_per_dispatch = min(config.steps_per_dispatch or usual, steps_per_epoch)
        self._devices, self._batch_size = devices, config.batch_size
        step = make_train_step(network, optimizer)
        numbers = hyperparameters(config, optimizer)
        self.key = structure(config, numbers), network.module, network.stage, devices.mesh
        self._jit = functools.partial(jax.jit, out_shardings=devices.replicated)
        self._take = functools.partial(_take_steps, step)
        self._train = shared("train", self.key, lambda: self._jit(self._take, donate_argnums=0))
        self._gradients = shared(
            "gradients", self.key, lambda: self._jit(functools.partial(_gradients, network))
        )
        self._augment = self._jit(functools.partial(_augment, config))

    def train(
        self,
        state: TrainState,
        examples: Examples,
        indices: np.ndarray,
        epoch: int,
        learning_rates: np.ndarray,
        hyperparameters: dict[str, float],
        seed: int,
    ) -> Taken:
        """Takes some steps of one epoch in one call; `state` is donated.

        Args:
          state: the state before.
          examples: the training images, on the devices, or the batch of the one step.
          indices: int32 `[steps, batch]`, of at most `steps_per_dispatch` steps.
          epoch: the epoch.
          learning_rates: float32 `[steps]`.
          hyperparameters: see `resnet_jax.training.hyperparameters`.
          seed: seed of the run.

        Returns:
          The state after, a copy of its metrics, and what each step told, arrays `[rows]` whose
          first `steps` count.
        """
        arguments = indices, epoch, learning_rates, hyperparameters, seed
        return self._train(state, self._devices.feed(examples), *self._put(*arguments))

    def train_together(self, calls: Sequence[Call]) -> list[Taken]:
        """Takes steps of several trainings in one call of one program; their states are donated.

        Args:
          calls: the arguments of `train` for each, with the same images, on the devices, and
            indices of one shape.

        Returns:
          What `train` returns, for each.
        """
        if len(calls) == 1:
            return [self.train(*calls[0])]
        states, (examples, *_), *rest = zip(*calls, strict=True)
        put = [self._put(*arguments) for arguments in zip(*rest, strict=True)]
        indices, (count, *_), *numbers = zip(*put, strict=True)
        program = shared(
            *("train", (self.key, len(calls))),
            lambda: self._jit(functools.partial(_take_together, self._take), donate_argnums=0),
        )
        return program(states, examples, indices, count, *numbers)

    def _put(
        self,
        indices: np.ndarray,
        epoch: int,
        learning_rates: np.ndarray,
        hyperparameters: dict[str, float],
        seed: int,
    ) -> tuple[Any, ...]:
        """Returns what the program takes after the images, on the devices."""
        count = len(indices)
        if indices.shape[1] == self._batch_size:  # any number of steps has the same program
            missing = self.steps_per_dispatch - count
            indices = np.pad(indices, ((0, missing), (0, 0)))
            learning_rates = np.pad(learning_rates, (0, missing))
        numbers = {
            **{name: np.float32(value) for name, value in hyperparameters.items()},
            "optimizer.learning_rate": np.asarray(learning_rates, np.float32),
        }
        scalars = self._devices.put((np.int32(count), np.int32(epoch), numbers, np.uint32(seed)))
        return self._devices.split(indices), *scalars

    def gradients(
        self,
        state: TrainState,
        examples: Examples,
        indices: np.ndarray,
        epoch: int,
        hyperparameters: dict[str, float],
        seed: int,
    ) -> Tree:
        """Returns the gradients at a state, with the randomness of its next step, for histograms.

        Args:
          state: the state, which is kept.
          examples: the training images, on the devices, or a batch of them.
          indices: int32 `[batch]`.
          epoch: the epoch.
          hyperparameters: see `resnet_jax.training.hyperparameters`.
          seed: seed of the run.
        """
        numbers = {name: np.float32(value) for name, value in hyperparameters.items()}
        scalars = self._devices.put((np.int32(epoch), numbers, np.uint32(seed)))
        return self._gradients(
            state, self._devices.feed(examples), self._devices.split(indices), *scalars
        )

    def augment(
        self,
        examples: Examples,
        indices: np.ndarray,
        epoch: int,
        step: int | jax.Array,
        purpose: Purpose,
    ) -> Examples:
        """Returns images, uint8, as the step that follows has them, and their labels.

        Args:
          examples: images on the devices, or the batch of a stream.
          indices: int32 `[batch]`.
          epoch: the epoch.
          step: number of steps taken.
          purpose: of the randomness.

        Returns:
          The images and their labels, of mixed ones those of the larger share.
        """
        return self._augment(self._devices.feed(examples), indices, epoch, step, purpose)


def _take_steps(
    step: TrainStep,
    state: TrainState,
    examples: Examples,
    indices: jax.Array,
    count: jax.Array,
    epoch: jax.Array,
    hyperparameters: dict[str, jax.Array],
    seed: jax.Array,
) -> Taken:
    """Takes the first `count` of the steps that `indices` and the learning rates have rows for."""
    key = jax.random.key(seed)

    def take(row: Any, state: TrainState) -> tuple[TrainState, StepMetrics]:
        rate = hyperparameters["optimizer.learning_rate"][row]
        numbers: Hyperparameters = hyperparameters | {"optimizer.learning_rate": rate}
        return step(state, _batch(examples, indices[row], epoch), numbers, key)

    def take_next(row: Any, carry: tuple[TrainState, StepMetrics]) -> Any:
        state, told = take(row, carry[0])
        return state, jax.tree.map(lambda rows, new: rows.at[row].set(new), carry[1], told)

    if len(indices) == 1:  # a loop would cost XLA's CPU backend its fast convolutions
        state, told = take(0, state)
        return state, state.metrics, jax.tree.map(lambda new: new[None], told)
    rows = jnp.zeros(len(indices), jnp.float32)
    state, told = lax.fori_loop(0, count, take_next, (state, StepMetrics(rows, rows)))
    return state, state.metrics, told


def _take_together(
    take: Callable[..., Taken],
    states: Sequence[TrainState],
    examples: Examples,
    indices: Sequence[jax.Array],
    count: jax.Array,
    *numbers: Sequence[Any],
) -> list[Taken]:
    """Takes steps of several trainings, of which all but images and count has one for each."""

    def stacked(of_each: Sequence[Any]) -> Any:
        return jax.tree.map(lambda *leaves: jnp.stack(leaves), *of_each)

    axes = (0, None, 0, None, *[0] * len(numbers))
    arguments = stacked(states), examples, stacked(indices), count, *map(stacked, numbers)
    taken = jax.vmap(take, axes)(*arguments)
    return [jax.tree.map(operator.itemgetter(place), taken) for place in range(len(states))]


def _gradients(
    network: Network,
    state: TrainState,
    examples: Examples,
    indices: jax.Array,
    epoch: jax.Array,
    hyperparameters: Hyperparameters,
    seed: jax.Array,
) -> Tree:
    batch = _batch(examples, indices, epoch)
    loss_fn = make_loss(network, state, batch, hyperparameters, jax.random.key(seed))
    return jax.grad(loss_fn, has_aux=True)(state.params)[0]


def _augment(
    config: ConfigDict,
    examples: Examples,
    indices: jax.Array,
    epoch: jax.Array,
    step: jax.Array,
    purpose: Purpose,
) -> Examples:
    batch = _batch(examples, indices, epoch)
    numbers = {f"augment.{name}": config.augment[name] for name in STRENGTHS}
    images, targets = augmented(config, step, batch, numbers, jax.random.key(config.seed), purpose)
    return Examples(jnp.round(255 * images).astype(jnp.uint8), targets.argmax(-1))


def _batch(examples: Examples, indices: jax.Array, epoch: jax.Array) -> Batch:
    found = examples.at(indices)
    return Batch(found.images, found.labels, indices, epoch)
