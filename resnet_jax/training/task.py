"""What a config asks for, made and checked before any data is loaded."""

import dataclasses
import os
from collections.abc import Callable, Container, Mapping
from typing import Any

import flax.linen as nn
import jax
import numpy as np
from ml_collections import ConfigDict

from resnet_jax.data.datasets import DatasetInfo, input_shape
from resnet_jax.data.order import TrainingOrder
from resnet_jax.data.registry import find_dataset
from resnet_jax.data.splits import split_sizes
from resnet_jax.errors import UserError, shown
from resnet_jax.models.registry import create_model, model_options
from resnet_jax.platform import machine_memory
from resnet_jax.randomness import Purpose, derive
from resnet_jax.training.features import check_cached_stage
from resnet_jax.training.hyperparameters import hyperparameters, shared, structure
from resnet_jax.training.optimizers import Optimizer, create_optimizer
from resnet_jax.training.schedules import learning_rates
from resnet_jax.training.state import TrainState, Tree, initial_state
from resnet_jax.training.step import Network


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
        return self._due(self.config.evaluate, step)

    def save_due(self, step: int) -> bool:
        """Returns whether the state is saved."""
        return self._due(self.config.checkpoint, step)

    def next_event(self, step: int) -> int:
        """Returns the first later step after which anything is due."""
        config = self.config
        intervals = (
            self.steps_per_epoch,
            *(group.every_steps for group in (config.log, config.evaluate, config.checkpoint)),
        )
        return min((step // every + 1) * every for every in intervals if every)

    def _due(self, group: ConfigDict, step: int) -> bool:
        every = group.every_epochs * self.steps_per_epoch
        is_last = step == self.total_steps
        return is_last or _divides(group.every_steps, step) or _divides(every, step)


def _divides(interval: int, step: int) -> bool:
    return interval > 0 and step % interval == 0


@dataclasses.dataclass(frozen=True)
class Task:
    """All that a run is made of but its data and its state.

    Attributes:
      config: the checked config.
      info: the dataset.
      network: the module that is trained, and what its images go through.
      optimizer: its optimizer.
      order: which images make up each step.
      agenda: when what is due.
      learning_rates: learning rate of every step, float32 `[steps]`.
      hyperparameters: the other numbers of the step, see `resnet_jax.training.hyperparameters`.
      template: shapes and dtypes of the state.
      create_state: makes the state before the first step, of the variables to start from or, if
        there are none, of random ones.
    """

    config: ConfigDict
    info: DatasetInfo
    network: Network
    optimizer: Optimizer
    order: TrainingOrder
    agenda: Agenda
    learning_rates: np.ndarray
    hyperparameters: dict[str, float]
    template: TrainState
    create_state: Callable[..., TrainState]

    @property
    def input_shape(self) -> tuple[int, int, int]:
        """Height, width and channels of what the model takes."""
        return input_shape(self.info, self.config.data)


def create_task(config: ConfigDict, info: DatasetInfo) -> Task:
    """Returns what a config asks for; its model is traced, not run.

    Args:
      config: the checked config.
      info: the dataset that it is for.

    Raises:
      UserError: if model, optimizer or schedule are unknown, their options don't suit them, or
        config and dataset don't suit each other.
    """
    config = _completed(config, info)
    if len(config.data.classes) not in (0, len(info.class_names)):
        raise UserError(
            f"config field data.classes names {len(config.data.classes)} classes but the dataset "
            f"has {len(info.class_names)}; clear it, or give a dataset of these classes only"
        )
    if len(info.class_names) > config.model.num_classes:
        raise UserError(
            f"config field model.num_classes is {config.model.num_classes} but the data has "
            f"{len(info.class_names)} classes; 0 takes as many as the data has"
        )
    model = _create_model(config)
    optimizer = create_optimizer(config.optimizer)
    order = TrainingOrder(
        config.seed,
        split_sizes(info, config.data)["train"],
        config.batch_size,
        config.data.shuffle,
        config.data.drop_last,
    )
    shape = input_shape(info, config.data)
    create = _creation(config, model, optimizer, shape)
    start = optimizer.numbers, derive(jax.random.key(config.seed), Purpose.INIT)
    template = create.eval_shape(*start, None)
    if config.init.cached_stage:
        variables = {"params": template.params, "batch_stats": template.batch_stats}
        check_cached_stage(model, variables, shape, config)
    agenda = Agenda(config, order.steps_per_epoch)
    if 0 < agenda.total_steps < config.optimizer.accumulate_steps:
        raise UserError(
            f"config field optimizer.accumulate_steps is {config.optimizer.accumulate_steps} but "
            f"the run has {agenda.total_steps} steps, so nothing would be trained; lower it"
        )
    return Task(
        config=config,
        info=info,
        network=Network(model, config),
        optimizer=optimizer,
        order=order,
        agenda=agenda,
        learning_rates=learning_rates(config, config.num_epochs, order.steps_per_epoch),
        hyperparameters=hyperparameters(config, optimizer),
        template=template,
        create_state=lambda weights=None: create(*start, weights),
    )


def _creation(
    config: ConfigDict, model: nn.Module, optimizer: Optimizer, shape: tuple[int, int, int]
) -> Any:
    """Returns the compiled function of the optimizer's numbers, a key and weights or None."""
    averaged = bool(config.optimizer.ema_decay)

    def create(numbers: Mapping[str, float], key: jax.Array, weights: Tree | None) -> TrainState:
        return initial_state(model, optimizer.build(numbers), shape, averaged, key, weights)

    # It runs once: to optimise it in full would take longer than it runs.
    options = {"xla_backend_optimization_level": 1}
    key = structure(config, optimizer.numbers), model, shape
    return shared("create", key, lambda: jax.jit(create, compiler_options=options))


def check_names(config: ConfigDict) -> None:
    """Refuses unknown names and options that don't suit them, as `create_task` does.

    Args:
      config: the checked config; its dataset is not opened.

    Raises:
      UserError: if model, optimizer, schedule or dataset are unknown, or options don't suit them.
    """
    find_dataset(config.data.name)
    _create_model(config)
    create_optimizer(config.optimizer)
    learning_rates(config, config.num_epochs, 1)


def _completed(config: ConfigDict, info: DatasetInfo) -> ConfigDict:
    """Returns the config with what it leaves to the data: classes, mean and deviation."""
    config = config.copy_and_resolve_references()
    with config.unlocked():
        config.model.num_classes = config.model.num_classes or len(info.class_names)
        config.data.mean = config.data.mean or info.mean
        config.init.weights = os.path.expanduser(config.init.weights)
        # A channel that never varies has no deviation to be divided by.
        config.data.std = config.data.std or tuple(std or 1.0 for std in info.std)
    augment, channels = config.augment, info.image_shape[-1]
    greys = augment.policy != "none" or augment.contrast or augment.saturation
    if greys and channels not in (1, 3):
        raise UserError(
            "config fields augment.policy, augment.contrast and augment.saturation take images of "
            f"1 or 3 channels, not {channels}; turn them off"
        )
    for name in ("mean", "std"):
        if len(config.data[name]) != info.image_shape[-1]:
            raise UserError(
                f"config field data.{name} has {len(config.data[name])} numbers but the images "
                f"have {info.image_shape[-1]} channels; --config.data.{name}='()' takes the data's"
            )
    return config


def check_extension(task: Task, num_epochs: object, scored: Container[int]) -> None:
    """Refuses to go on with a run that would have been another one with the new num_epochs.

    Args:
      task: what is asked for now.
      num_epochs: those of the run so far.
      scored: the steps that it was scored at.

    Raises:
      UserError: if the run would become shorter, or what has been trained would have been trained
        in another way: at other learning rates, or steered by other scores.
    """
    config = task.config
    if num_epochs == config.num_epochs:
        return
    asked = f"config field num_epochs was {shown(num_epochs)}, is {config.num_epochs}"
    if type(num_epochs) is not int or num_epochs > config.num_epochs:
        raise UserError(f"{asked}; a run can only be extended, name another --workdir")
    before = learning_rates(config, num_epochs, task.agenda.steps_per_epoch)
    if not np.array_equal(before, task.learning_rates[: len(before)]):
        raise UserError(
            f"{asked}, on which the learning rates of schedule.name={config.schedule.name!r} "
            "depend from the first epoch on; name another --workdir"
        )
    is_steered = config.schedule.name == "plateau" or config.evaluate.patience
    was_scored = len(before) in scored
    if is_steered and was_scored and not (len(before) and task.agenda.score_due(len(before))):
        raise UserError(
            f"{asked}, and the run was scored at its end, which it would not have been with "
            f"evaluate.every_epochs={config.evaluate.every_epochs}; name another --workdir"
        )


def _create_model(config: ConfigDict) -> nn.Module:
    options = config.model.options.to_dict()
    for name in options.keys() & {"name", "num_classes", "dtype", "remat"}:
        raise UserError(f"config field model.options.{name}: set model.{name} instead")
    name, classes, dtype = config.model.name, config.model.num_classes, config.model.dtype
    if config.model.remat and "remat" not in model_options(name):
        raise UserError(
            f"config field model.remat is for residual networks, not {name}; set it to 0"
        )
    if config.model.remat:
        options["remat"] = config.model.remat
    return create_model(name, classes, dtype=dtype, **options)


def check_memory(task: Task) -> None:
    """Refuses a training whose state can't be held here.

    To try would take long, or the machine down.

    Raises:
      UserError: if it can't.
    """
    needed = sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(task.template))
    device = (jax.local_devices()[0].memory_stats() or {}).get("bytes_limit")  # a CPU has none
    for place, there in (("the device", device), ("this machine", machine_memory())):
        if there and needed > there:
            raise UserError(
                f"config group model: weights and optimizer state take {needed / 2**30:,.1f} GiB "
                f"and {place} has {there / 2**30:,.1f}; take a smaller model.name or model.options"
            )
