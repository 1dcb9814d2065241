"""The classes of images from files."""

import dataclasses
import os
from collections.abc import Callable, Iterable, Iterator

import numpy as np

from resnet_jax.errors import UserError
from resnet_jax.inference.images import Name, OnBadImage, read_batches
from resnet_jax.inference.scores import all_class_names
from resnet_jax.training.devices import Devices
from resnet_jax.training.driver import Evaluator
from resnet_jax.training.restore import restore

# Called with the pixels of a batch, uint8 `[images, height, width, channels]`, and predictions.
Watch = Callable[[np.ndarray, list["Prediction"]], None]


@dataclasses.dataclass(frozen=True)
class Prediction:
    """What a model takes an image for.

    Attributes:
      path: the file of the image, as it was named or found.
      class_names: the names of all classes, the most probable one first.
      probabilities: their probabilities, in the same order; they add up to 1.
    """

    path: str
    class_names: tuple[str, ...]
    probabilities: tuple[float, ...]


def predict(
    workdir: str | os.PathLike[str],
    paths: Iterable[Name],
    which: str = "best",
    on_bad_image: OnBadImage | None = None,
) -> list[Prediction]:
    """Classifies images from files with a checkpoint of a run; see `Classifier.predictions`.

    Args:
      workdir: the folder of the run.
      paths: the files, folders and patterns.
      which: see `resnet_jax.load_run`.
      on_bad_image: called with the error of a file that is no readable image, which is left out;
        None: the error is raised.

    Returns:
      One prediction per image, in their order.

    Raises:
      UserError: if there is no run, or no checkpoint that can be used, or an image can't be read.
    """
    return list(Classifier(workdir, which).predictions(paths, on_bad_image))


class Classifier:
    """A checkpoint of a run that classifies images, held in memory.

    Attributes:
      network: its module, and what images go through before it.
      variables: its parameters and statistics, on the devices.
      class_names: the names of the classes, by label.
    """

    def __init__(self, workdir: str | os.PathLike[str], which: str = "best") -> None:
        """Restores the checkpoint.

        Args:
          workdir: the folder of the run.
          which: see `resnet_jax.load_run`.

        Raises:
          UserError: if there is no run, or no checkpoint that can be used.
        """
        task, state = restore(workdir, which)
        devices = Devices()
        self.network, self.variables = task.network, devices.put(state.variables())
        self.class_names = all_class_names(task.info.class_names, task.config.model.num_classes)
        self._shape, self._batch_size = task.info.image_shape, task.config.evaluate.batch_size
        self._evaluator = Evaluator(task.network, devices)

    def predictions(
        self,
        paths: Iterable[Name],
        on_bad_image: OnBadImage | None = None,
        watch: Watch | None = None,
    ) -> Iterator[Prediction]:
        """Yields the predictions of images, which are read in batches while others are classified.

        They are brought to the size of the run's own images, see
        `resnet_jax.data.image_files.read`, and from there take the way of the test images.

        Args:
          paths: files; folders, which are searched; patterns, as the shell has them; and "-",
            standard input: an image, or names, one a line.
          on_bad_image: called with the error of a file that is no readable image, which is left
            out; None: the error is raised.
          watch: called with each batch and its predictions before they are yielded.

        Raises:
          UserError: if an image can't be read and `on_bad_image` is None.
        """
        batches = read_batches(paths, self._shape, self._batch_size, on_bad_image or _refuse)
        for names, pixels in batches:
            found = [
                self._prediction(name, row)
                for name, row in zip(names, self.probabilities(pixels), strict=True)
            ]
            if watch:
                watch(pixels, found)
            yield from found

    def probabilities(self, pixels: np.ndarray) -> np.ndarray:
        """Returns the probability of each class for each image, float32 `[images, classes]`.

        Args:
          pixels: uint8 `[images, height, width, channels]`.
        """
        # Batches are filled up to a power of two, so that few programs serve.
        count = len(pixels)
        size = min(self._batch_size, 1 << (count - 1).bit_length())
        filled = np.pad(pixels, ((0, -count % size), (0, 0), (0, 0), (0, 0)))
        return self._evaluator.probabilities(self.variables, filled, size)[:count]

    def _prediction(self, name: str, row: np.ndarray) -> Prediction:
        order = np.argsort(-row, kind="stable")
        best_first = tuple(self.class_names[label] for label in order)
        return Prediction(name, best_first, tuple(row[order].tolist()))


def _refuse(error: UserError) -> None:
    raise error
