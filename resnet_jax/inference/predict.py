"""The classes of images from files."""

import dataclasses
import os
from collections.abc import Callable, Iterable, Iterator

import numpy as np
from ml_collections import ConfigDict

from resnet_jax.config.load import default_config
from resnet_jax.data.datasets import Examples, check_pixels
from resnet_jax.errors import UserError
from resnet_jax.inference.images import Name, OnBadImage, read_batches
from resnet_jax.inference.scores import all_class_names
from resnet_jax.training.devices import Devices
from resnet_jax.training.evaluator import Evaluator
from resnet_jax.training.state import Tree
from resnet_jax.training.step import Network
from resnet_jax.weights.info import described, find_by_model
from resnet_jax.weights.torch_files import TorchFile
from resnet_jax.weights.torch_weights import fill

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
    paths: Name | Iterable[Name],
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
    return list(Classifier.of_run(workdir, which).predictions(paths, on_bad_image))


class Classifier:
    """A model with its weights that classifies images, held in memory.

    Attributes:
      network: its module, and what images go through before it.
      variables: its parameters and statistics, on the devices.
      class_names: the names of the classes, by label.
    """

    def __init__(
        self,
        network: Network,
        variables: Tree,
        class_names: tuple[str, ...],
        image_shape: tuple[int, int, int],
    ) -> None:
        """Puts the variables on the devices.

        Args:
          network: the module, and what images go through before it.
          variables: its parameters and statistics.
          class_names: a name for each logit.
          image_shape: height, width and channels that images are brought to.

        Raises:
          UserError: if these channels are neither grey nor RGB.
        """
        if image_shape[-1] not in (1, 3):
            raise UserError(f"the model takes {image_shape[-1]} channels, which no image file has")
        devices = Devices()
        self.network, self.variables = network, devices.put(variables)
        self.class_names, self._shape = class_names, image_shape
        self._batch_size = network.config.evaluate.batch_size
        self._evaluator = Evaluator(network, devices)

    @classmethod
    def of_run(cls, workdir: str | os.PathLike[str], which: str = "best") -> "Classifier":
        """Returns that of a checkpoint of a run.

        Args:
          workdir: the folder of the run.
          which: see `resnet_jax.load_run`.

        Raises:
          UserError: if there is no run, or no checkpoint that can be used.
        """
        # It brings orbax, which takes long to import and no file of weights needs.
        from resnet_jax.training.restore import restore

        task, state = restore(workdir, which)
        names = all_class_names(task.info.class_names, task.config.model.num_classes)
        return cls(task.network, state.variables(), names, task.info.image_shape)

    @classmethod
    def of_weights(cls, weights: str | os.PathLike[str]) -> "Classifier":
        """Returns that of a file of weights that says what it is for.

        Args:
          weights: a file that `resnet_jax.export_torch` wrote, or the name of a model whose weights
            are part of the package.

        Raises:
          UserError: if there is no such file or name, or the file can't be used.
        """
        file = TorchFile(find_by_model(weights))
        info = described(file)
        model, config = info.create_model(), default_config()
        config.model.name, config.model.num_classes = info.model, len(info.class_names)
        config.model.options = ConfigDict(info.options)
        config.data.mean, config.data.std = info.mean, info.std
        config.data.image_size = info.image_size
        config.evaluate.test_time_augmentation = info.test_time_augmentation
        variables = fill(model, file, image_shape=info.input_shape)
        return cls(Network(model, config), variables, info.class_names, info.image_shape)

    def predictions(
        self,
        paths: Name | Iterable[Name],
        on_bad_image: OnBadImage | None = None,
        watch: Watch | None = None,
    ) -> Iterator[Prediction]:
        """Yields the predictions of images, which are read in batches while others are classified.

        They are brought to the size of the images that the model was trained on, see
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
        paths = [paths] if isinstance(paths, str | os.PathLike) else paths
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

        Raises:
          UserError: if they are none.
        """
        check_pixels("pixels", pixels)
        # Batches are filled up to a power of two, so that few programs serve.
        size = min(self._batch_size, 1 << (len(pixels) - 1).bit_length())
        examples = Examples(pixels, np.zeros(len(pixels), np.int32))
        return self._evaluator.probabilities(self.variables, examples, size)

    def _prediction(self, name: str, row: np.ndarray) -> Prediction:
        order = np.argsort(-row, kind="stable")
        best_first = tuple(self.class_names[label] for label in order)
        return Prediction(name, best_first, tuple(row[order].tolist()))


def _refuse(error: UserError) -> None:
    raise error
