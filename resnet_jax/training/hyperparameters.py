"""The numbers of a config that are arguments of the compiled training step, not part of it.

Their names are the paths of their fields. Trainings that differ only in them share a program.
"""

from ml_collections import ConfigDict

from resnet_jax.data.augment import STRENGTHS
from resnet_jax.training.optimizers import Optimizer

_FIELDS = ("loss.label_smoothing", "optimizer.ema_decay", *(f"augment.{s}" for s in STRENGTHS))


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
