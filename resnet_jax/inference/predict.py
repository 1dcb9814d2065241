"""The classes of images from files."""

import dataclasses
import os
from collections.abc import Sequence

import numpy as np

from resnet_jax.data import image_files
from resnet_jax.training.devices import Devices
from resnet_jax.training.driver import Evaluator
from resnet_jax.training.restore import restore


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

    All files are read before any is classified, and one that can't be used means that none is. They
    are brought to the size of the run's own images, see `resnet_jax.data.image_files.read`, and
    from there take the way of the test images.

    Args:
      workdir: the folder of the run.
      paths: the files.
      which: see `resnet_jax.load_run`.

    Returns:
      One prediction per file, in their order.

    Raises:
      UserError: if a file is no readable image, or there is no run, or no checkpoint that can be
        used.
    """
    task, state = restore(workdir, which)
    config = task.config
    pixels = image_files.read(paths, task.info.image_shape)
    names = [*task.info.class_names]
    names += [f"class {label}" for label in range(len(names), config.model.num_classes)]
    evaluator = Evaluator(task.network, Devices())
    rows = evaluator.probabilities(state.variables(), pixels, config.evaluate.batch_size)
    predictions = []
    for path, row in zip(paths, rows, strict=True):
        order = np.argsort(-row, kind="stable")
        best_first = tuple(names[label] for label in order)
        predictions.append(Prediction(os.fspath(path), best_first, tuple(row[order].tolist())))
    return predictions
