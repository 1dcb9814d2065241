"""The numbers of a config that are arguments of the compiled training step, not part of it.

Their names are the paths of their fields. Trainings that differ only in them share a program.
"""

from collections.abc import Callable, Hashable, Iterable, Sequence
from typing import Any, TypeVar

from ml_collections import ConfigDict

from resnet_jax.config.load import leaves
from resnet_jax.data.augment import STRENGTHS
from resnet_jax.training.optimizers import Optimizer, create_optimizer

_FIELDS = ("loss.label_smoothing", "optimizer.ema_decay", *(f"augment.{s}" for s in STRENGTHS))

# Fields that programs don't depend on but by the shapes of their arguments, those among them that
# they do depend on, and those that training alone does.
_OUTSIDE = (
    *("seed", "num_epochs", "batch_size", "on_nan_limit", "reported_accuracy", "init.weights"),
    *("data.", "evaluate.", "schedule.", "checkpoint.", "log."),
)
_INSIDE = ("data.image_size", "data.mean", "data.std", "evaluate.test_time_augmentation")
_TRAINING = ("optimizer.", "loss.", "augment.")
# What steers a training from outside of its program.
_STEERING = ("seed", "schedule.", "data.shuffle")
_MAX_PROGRAMS = 32

Program = TypeVar("Program", bound=Callable[..., Any])
_programs: dict[tuple[str, Hashable], Any] = {}


def structure(config: ConfigDict, numbers: Iterable[str] | None) -> str:
    """Returns all that a program depends on; configs that differ in numbers only have it in common.

    Args:
      config: the whole config.
      numbers: the paths of the fields that are arguments of the program; None: it does not train.
    """
    outside = _OUTSIDE if numbers is not None else (*_OUTSIDE, *_TRAINING)
    return _without(config, numbers or (), outside, _INSIDE)


def shape(config: ConfigDict) -> str:
    """Returns what trainings have in common that may go on side by side.

    That is all but numbers that are arguments of the step, seed, schedule and order of the images.
    """
    numbers = hyperparameters(config, create_optimizer(config.optimizer))
    return _without(config, numbers, _STEERING)


def _without(
    config: ConfigDict, numbers: Iterable[str], outside: tuple[str, ...], but: Sequence[str] = ()
) -> str:
    names = sorted(numbers)
    fields = {
        path: value
        for path, value in sorted(leaves(config).items())
        if path not in names and (path in but or not path.startswith(outside))
    }
    return repr((names, fields))


def shared(name: str, key: Hashable, make: Callable[[], Program]) -> Program:
    """Returns the jitted function of a name and a key, which is made once in this process."""
    if (name, key) not in _programs:
        if len(_programs) >= _MAX_PROGRAMS:
            del _programs[next(iter(_programs))]
        _programs[name, key] = make()
    return _programs[name, key]


def hyperparameters(config: ConfigDict, optimizer: Optimizer) -> dict[str, float]:
    """Returns the numbers of a training step by the paths of their fields.

    A field that is zero is left out: it switches its part of the step off.

    Args:
      config: the whole config.
      optimizer: the optimizer that its group `optimizer` names.
    """
    numbers = dict(optimizer.numbers)
    for path in _FIELDS:
        group, _, name = path.partition(".")
        if value := config[group][name]:
            numbers[path] = value
    return numbers
