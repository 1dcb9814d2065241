"""What a training is made of: model, data, order of the images, and the agenda of its events."""

import dataclasses
import os
from collections.abc import Callable

import flax.linen as nn
import jax
import numpy as np
from ml_collections import ConfigDict

from resnet_jax.data.pipeline import Examples, TrainingOrder, input_shape, load, split
from resnet_jax.data.sources import SOURCES, Dataset
from resnet_jax.errors import UserError, unknown
from resnet_jax.models.registry import create_model
from resnet_jax.training import freezing as transfer
from resnet_jax.training import whitening
from resnet_jax.training.optimizers import create_optimizer
from resnet_jax.training.schedules import create_schedule
from resnet_jax.training.state import Sums, TrainState, Tree, create_state, state_template
from resnet_jax.training.step import Steps
from resnet_jax.weights.load import initial_variables
from resnet_jax.weights.pretrained import weights_file

# Arguments of `create_model` that are fields of their own.
_ELSEWHERE = {"weights": "init.weights"}
_ELSEWHERE |= {name: f"model.{name}" for name in ("name", "num_classes", "dtype")}


@dataclasses.dataclass(frozen=True)
class Agenda:
    """When what is due, as a function of the number of steps taken.

    Attributes:
      config: the whole config.
      steps_per_epoch: training steps in an epoch.
    """

    config: ConfigDict
    steps_per_epoch: int

    @property
    def total_steps(self) -> int:
        """Length of the run, steps."""
        return self.config.num_epochs * self.steps_per_epoch

    def epoch_ends(self, step: int) -> bool:
        """Returns whether an epoch ends with this step."""
        return step % self.steps_per_epoch == 0

    def log_due(self, step: int) -> bool:
        """Returns whether training loss and accuracy are recorded."""
        return self.epoch_ends(step) or _divides(self.config.log.every_steps, step)

    def score_due(self, step: int) -> bool:
        """Returns whether the model is scored."""
        every = self.config.evaluate.every_epochs * self.steps_per_epoch
        by_steps = _divides(self.config.evaluate.every_steps, step)
        return by_steps or _divides(every, step) or step == self.total_steps

    def save_due(self, step: int) -> bool:
        """Returns whether the state is saved."""
        every = self.config.checkpoint.every_epochs * self.steps_per_epoch
        by_steps = _divides(self.config.checkpoint.every_steps, step)
        return by_steps or _divides(every, step) or step == self.total_steps

    def next_event(self, step: int) -> int:
        """Returns the first later step after which anything is due."""
        intervals = [
            self.steps_per_epoch,
            self.config.log.every_steps,
            self.config.evaluate.every_steps,
            self.config.checkpoint.every_steps,
        ]
        return min((step // every + 1) * every for every in intervals if every)


def _divides(interval: int, step: int) -> bool:
    return interval > 0 and step % interval == 0


def check(config: ConfigDict) -> None:
    """Refuses a config that names what does not exist, before anything is loaded or written.

    Args:
      config: the checked config.

    Raises:
      UserError: if model, optimizer, schedule or data source are unknown, or their options or the
        group init don't suit them.
    """
    model = build_model(config)
    optimizer = create_optimizer(config.optimizer)
    shape = input_shape(config.data)
    if config.init.whitening_images or config.init.cached_stage:
        state = state_template(model, optimizer, config, shape)
        whitening.check(config, state)
    if config.init.cached_stage:
        images = jax.ShapeDtypeStruct((2, *shape), np.float32)
        transfer.check_cached_stage(model, state.variables(), images, config)
    learning_rates(config, steps_per_epoch=1)
    if config.data.source not in SOURCES:
        raise unknown("data source (data.source)", config.data.source, SOURCES)


def check_weights(config: ConfigDict) -> None:
    """Refuses a config whose training would start from a file that does not exist.

    Raises:
      UserError: if it would.
    """
    weights = config.init.weights
    if weights not in ("", "torchvision") and not os.path.isfile(weights):
        raise UserError(f"config field init.weights: there is no file {weights}")


def build_model(config: ConfigDict) -> nn.Module:
    """Returns the module that a config names."""
    options = config.model.options.to_dict()
    for name in options.keys() & _ELSEWHERE.keys():
        raise UserError(f"config field model.options.{name}: set {_ELSEWHERE[name]} instead")
    options["dtype"] = config.model.dtype
    return create_model(config.model.name, config.model.num_classes, **options)


@dataclasses.dataclass(frozen=True)
class Task:
    """All that a training needs and that never changes in its course.

    Attributes:
      config: the checked config.
      model: the module that is trained.
      dataset: the images.
      data: the splits "train", "test" and perhaps "val", on the devices.
      order: which images make up each step.
      agenda: when what is due.
      steps: the compiled functions.
      learning_rates: learning rate of every step, float32 `[steps]`.
      state: the state to go on from.
    """

    config: ConfigDict
    model: nn.Module
    dataset: Dataset
    data: dict[str, Examples]
    order: TrainingOrder
    agenda: Agenda
    steps: Steps
    learning_rates: np.ndarray
    state: TrainState

    @classmethod
    def create(
        cls,
        config: ConfigDict,
        dataset: Dataset | None,
        notify: Callable[[str], None],
        restore: Callable[[TrainState], TrainState | None] = lambda template: None,
    ) -> "Task":
        """Makes everything that a config names.

        Args:
          config: the checked config.
          dataset: the images; None: those that the config names.
          notify: is told what is fetched and passed over.
          restore: maps a template to the state to go on from; None: there is none.
        """
        model = build_model(config)
        optimizer = create_optimizer(config.optimizer)
        dataset = dataset or load(config.data, notify)
        _check_classes(config, dataset)
        splits = split(dataset, config.data)
        order = TrainingOrder(
            jax.random.key(config.seed),
            len(splits["train"]),
            config.batch_size,
            config.data.shuffle,
            config.data.drop_last,
        )
        agenda = Agenda(config, order.steps_per_epoch)
        shape = input_shape(config.data)
        template = state_template(model, optimizer, config, shape)
        _check_memory(template)
        state = restore(template)
        steps = Steps(model, optimizer, config, order.steps_per_epoch)
        data = {name: part.on_device(steps.replicated) for name, part in splits.items()}
        if state is None:
            weights = _weights(config, model, notify)
            state = create_state(model, optimizer, config, shape, weights)
            state = jax.jit(steps.whitened)(state, data["train"])
        if config.init.cached_stage:
            notify(f"applying the frozen stages, up to {config.init.cached_stage}, to all images")
            data = {
                name: transfer.cache_features(model, state.variables(), part, steps.inputs, config)
                for name, part in data.items()
            }
            steps = Steps(model, optimizer, config, order.steps_per_epoch, features=True)
        return cls(
            config=config,
            model=model,
            dataset=dataset,
            data=data,
            order=order,
            agenda=agenda,
            steps=steps,
            learning_rates=learning_rates(config, order.steps_per_epoch),
            state=state,
        )

    @property
    def steps_per_dispatch(self) -> int:
        """Number of training steps in one call of the compiled function."""
        # A loop would cost XLA's CPU backend its fast convolutions.
        on_cpu = jax.default_backend() == "cpu"
        return self.config.steps_per_dispatch or (1 if on_cpu else 50)

    def score(self, state: TrainState, name: str) -> Sums:
        """Returns the sums over all images of a split."""
        batch_size = self.config.evaluate.batch_size
        return self.steps.evaluate(state.variables(), self.data[name], batch_size)


def learning_rates(config: ConfigDict, steps_per_epoch: int) -> np.ndarray:
    """Returns the learning rate of every step, float32 `[steps]`.

    Args:
      config: the checked config.
      steps_per_epoch: number of training steps in an epoch.

    Raises:
      UserError: if the schedule is unknown, or its options don't suit it.
    """
    schedule = create_schedule(
        config.schedule,
        learning_rate=config.optimizer.learning_rate,
        steps_per_epoch=steps_per_epoch,
        num_epochs=config.num_epochs,
    )
    return schedule(np.arange(config.num_epochs * steps_per_epoch))


def _check_memory(template: TrainState) -> None:
    """Refuses a state that no device here can hold; to try would take long, or the machine down."""
    needed = sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(template))
    there = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    if needed > there:
        raise UserError(
            f"config group model: weights and optimizer state take {needed / 2**30:,.1f} GiB and "
            f"this machine has {there / 2**30:,.1f}; take a smaller model.name or model.options"
        )


def _check_classes(config: ConfigDict, dataset: Dataset) -> None:
    if len(dataset.class_names) > config.model.num_classes:
        raise UserError(
            f"config field model.num_classes is {config.model.num_classes} but the data has "
            f"{len(dataset.class_names)} classes"
        )


def _weights(
    config: ConfigDict, model: nn.Module, notify: Callable[[str], None]
) -> dict[str, Tree] | None:
    """Returns the weights that a training starts from; None: random ones."""
    if not config.init.weights:
        return None
    path = weights_file(config.init.weights, config.model.name, notify)
    return initial_variables(path, model, input_shape(config.data), config.seed, notify)
