"""Exact evaluation of a finished or unfinished run."""

import dataclasses
import os
import pathlib
from collections.abc import Sequence

import flax.linen as nn
import jax
import numpy as np
from ml_collections import ConfigDict

from resnet_jax.config.load import selects
from resnet_jax.data import images
from resnet_jax.data.pipeline import IMAGE_SHAPE, Examples, class_names, input_shape, load
from resnet_jax.data.sources import Dataset
from resnet_jax.errors import UserError
from resnet_jax.runs import folder as workdir_lib
from resnet_jax.runs import records
from resnet_jax.runs.checkpoints import Checkpoints, DamagedError
from resnet_jax.training.optimizers import create_optimizer
from resnet_jax.training.state import Tree, state_template
from resnet_jax.training.step import Steps
from resnet_jax.training.task import build_model


@dataclasses.dataclass(frozen=True)
class Restored:
    """A checkpoint, ready to be applied.

    Attributes:
      config: the config of its run.
      model: the module.
      variables: its parameters and statistics, or their moving average if the run keeps one.
      step: number of steps taken.
    """

    config: ConfigDict
    model: nn.Module
    variables: dict[str, Tree]
    step: int


def load_checkpoint(
    workdir: str | os.PathLike[str], which: str = "best"
) -> tuple[nn.Module, dict[str, Tree]]:
    """Returns the module of a run and its variables.

    Args:
      workdir: the folder of the run.
      which: "best", the best by the run's own scores (the newest where they may not choose), or
        "newest".

    Raises:
      UserError: if there is no run, or no checkpoint that can be used.
    """
    restored = restore(workdir, which)
    return restored.model, restored.variables


def restore(workdir: str | os.PathLike[str], which: str) -> Restored:
    """Returns a checkpoint of a run; see `load_checkpoint`."""
    folder = pathlib.Path(workdir)
    config = workdir_lib.read_config(folder)
    model = build_model(config)
    optimizer = create_optimizer(config.optimizer)
    shape = input_shape(config.data)
    template = state_template(model, optimizer, config, shape)
    directory = folder / workdir_lib.CHECKPOINTS
    if not directory.is_dir():
        raise UserError(f"--workdir {workdir} holds no checkpoint yet")
    checkpoints = Checkpoints(directory, config.checkpoint.keep, read_only=True)
    steps = checkpoints.steps()
    if which == "best" and selects(config):
        run = checkpoints.run()
        steps = records.ranked(run["scores"] if run else [], steps)
    for step in steps:
        try:
            state = checkpoints.restore(template, step)
        except DamagedError as error:
            checkpoints.notify(f"checkpoint {step} is damaged: {error}")
            continue
        return Restored(config, model, state.variables(), step)
    raise UserError(f"no {which} checkpoint in {directory} can be used")


def evaluate_run(
    workdir: str | os.PathLike[str],
    which: str = "best",
    batch_size: int | None = None,
    dataset: Dataset | None = None,
) -> dict[str, float]:
    """Scores a checkpoint of a run on the test set, each image exactly once.

    Args:
      workdir: the folder of the run.
      which: see `load_checkpoint`.
      batch_size: images per step, which does not change the result; None: that of the run.
      dataset: the images; None: those that the run's config names.

    Returns:
      "step", "loss", "accuracy" in percent, and "count", the number of images.

    Raises:
      UserError: if there is no run, no checkpoint that can be used, or no data.
    """
    restored = restore(workdir, which)
    config = restored.config
    if dataset is None:
        dataset = load(config.data, print)
    steps = Steps(restored.model, None, config, steps_per_epoch=1)
    test = Examples(dataset.test_images, dataset.test_labels).on_device(steps.replicated)
    variables = jax.device_put(restored.variables, steps.replicated)
    sums = steps.evaluate(variables, test, batch_size or config.evaluate.batch_size)
    return {"step": restored.step, **sums.means(), "count": int(np.asarray(sums.count))}


@dataclasses.dataclass(frozen=True)
class Prediction:
    """What a model takes an image for.

    Attributes:
      path: the file of the image, as it was named.
      class_names: the names of all classes, the most probable one first.
      probabilities: their probabilities, in the same order; they add up to 1.
    """

    path: str
    class_names: tuple[str, ...]
    probabilities: tuple[float, ...]


def predict(
    workdir: str | os.PathLike[str],
    paths: Sequence[str | os.PathLike[str]],
    which: str = "best",
) -> list[Prediction]:
    """Classifies images from files with a checkpoint of a run.

    All files are read before anything else, and one that can't be used means that none is. They
    are brought to the size of the images of CIFAR-10, see `resnet_jax.data.images.read`, and from
    there take the way of the test images.

    Args:
      workdir: the folder of the run.
      paths: the files.
      which: see `load_checkpoint`.

    Returns:
      One prediction per file, in their order.

    Raises:
      UserError: if a file is no readable image, or there is no run, or no checkpoint that can be
        used.
    """
    pixels = images.read(paths, IMAGE_SHAPE[0])
    restored = restore(workdir, which)
    config = restored.config
    steps = Steps(restored.model, None, config, steps_per_epoch=1)
    names = class_names(config.data, config.model.num_classes)
    predictions = []
    for path, row in zip(paths, steps.probabilities(restored.variables, pixels), strict=True):
        order = np.argsort(-row, kind="stable")
        best_first = tuple(names[label] for label in order)
        predictions.append(Prediction(os.fspath(path), best_first, tuple(row[order].tolist())))
    return predictions
