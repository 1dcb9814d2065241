"""What there is to tell of a run: read from its folder, and found by its best checkpoint."""

import dataclasses
import os
import pathlib
import statistics
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from resnet_jax.data import streams
from resnet_jax.data.datasets import Dataset, DatasetInfo, Examples
from resnet_jax.errors import UserError
from resnet_jax.inference.evaluate import check_suits, load_run_dataset
from resnet_jax.inference.scores import (
    Bin,
    all_class_names,
    calibration,
    confusion_matrix,
    precision_and_recall,
)
from resnet_jax.report.summary import Layer, layer_table
from resnet_jax.runs import folder as folders
from resnet_jax.runs import records as records_lib
from resnet_jax.runs.records import Record
from resnet_jax.training.devices import Devices, place
from resnet_jax.training.evaluator import Evaluator
from resnet_jax.training.restore import restore
from resnet_jax.training.state import Tree
from resnet_jax.training.task import Task, create_task
from resnet_jax.trees import named_leaves

_MOST_PICTURES = 20


@dataclasses.dataclass(frozen=True)
class Run:
    """A run as its folder tells it; accuracies are in percent.

    Attributes:
      name: name of its folder.
      config: its config.
      info: the dataset that it was trained on.
      records: its records, oldest first.
      layers: the layers of its model.
      starts: when, how and on what each start took place; what can't be read is left out.
      images_per_step: mean number of images in a training step.
    """

    name: str
    config: ConfigDict
    info: DatasetInfo
    records: list[Record]
    layers: list[Layer]
    starts: list[dict[str, Any]]
    images_per_step: float

    def of(self, kind: str) -> list[Record]:
        """Returns the records of a kind."""
        return [record for record in self.records if record["kind"] == kind]

    @property
    def class_names(self) -> list[str]:
        """The names of all classes; bytes of theirs that are no text are escaped."""
        names = all_class_names(self.info.class_names, self.config.model.num_classes)
        return [_text(name) for name in names]

    @property
    def final(self) -> Record | None:
        """The closing record; None: the run is not finished."""
        found = self.of("final")
        return found[-1] if found else None

    @property
    def parameters(self) -> int:
        """Number of parameters of the model."""
        return sum(layer.parameters for layer in self.layers)

    @property
    def macs(self) -> int:
        """Multiply-accumulates of the model for one image."""
        return sum(layer.macs for layer in self.layers)

    @property
    def step_milliseconds(self) -> float | None:
        """Time of a training step, the median over the records; None: it was not measured."""
        told = [record.get("images_per_second") for record in self.of("train")]
        speeds = [speed for speed in told if records_lib.is_number(speed) and speed > 0]
        return 1000 * self.images_per_step / statistics.median(speeds) if speeds else None


class Pictures(NamedTuple):
    """Images and a title for each.

    Attributes:
      images: uint8 `[images, height, width, channels]`.
      titles: their titles.
    """

    images: np.ndarray
    titles: list[str]


@dataclasses.dataclass(frozen=True)
class TestFindings:
    """What the best checkpoint makes of the test images.

    Attributes:
      confusion: see `resnet_jax.inference.scores`, as are the next three.
      precision: of each class.
      recall: of each class.
      bins: ranges of confidence.
      calibration_error: expected calibration error, in [0, 1].
      mistakes: the images that are taken for the wrong class with most confidence.
      examples: one test image of each class.
    """

    confusion: np.ndarray
    precision: np.ndarray
    recall: np.ndarray
    bins: list[Bin]
    calibration_error: float
    mistakes: Pictures
    examples: Pictures

    @property
    def accuracy(self) -> float:
        """Share of the images that is predicted rightly, percent."""
        return 100 * float(np.trace(self.confusion)) / float(self.confusion.sum())


def read(workdir: str | os.PathLike[str]) -> Run:
    """Returns what the folder of a run tells.

    Raises:
      UserError: if there is no run.
    """
    folder = pathlib.Path(workdir)
    config, described = folders.read_run(folder)
    task = create_task(config, DatasetInfo.from_json(described))
    records, _ = records_lib.read(folder / folders.METRICS)
    layers = layer_table(task.network.module, task.input_shape)
    name = _text(folder.resolve().name)
    return Run(
        name=name,
        config=task.config,
        info=task.info,
        records=records,
        layers=layers,
        starts=folders.starts(folder),
        images_per_step=task.order.images_per_step,
    )


def find(
    run: Run, workdir: str | os.PathLike[str], dataset: Dataset | None
) -> tuple[TestFindings | None, np.ndarray, str]:
    """Applies the best checkpoint of a run to all test images.

    Args:
      run: the run.
      workdir: its folder.
      dataset: its images; None: those that its config names.

    Returns:
      What was found (None: there are no images), the filters of the first layer, floats `[height,
      width, channels, filters]`, and why there are no images, if so.

    Raises:
      UserError: if there is no checkpoint that can be used, or the dataset does not suit the run.
    """
    task, state = restore(workdir, "best")
    if dataset:
        check_suits(task, dataset.info)
    variables = state.variables()
    filters = _first_filters(run, variables)
    if not run.config.evaluate.score_test:
        problem = "evaluate.score_test is False, so the test set is left alone"
        return None, filters, f"{problem}; --mode=eval scores it"
    if run.final is None and run.config.evaluate.split == "val":
        return None, filters, "the run is not finished, and its test images are for its end"
    try:
        test = (dataset or load_run_dataset(task)).test
    except UserError as error:
        return None, filters, str(error)
    if not len(test):
        return None, filters, "the dataset has no test images"
    return _findings(task, variables, test, run.class_names), filters, ""


def _findings(task: Task, variables: Tree, test: Examples, names: Sequence[str]) -> TestFindings:
    devices, labels = Devices(), np.asarray(test.labels)
    examples = place(test, task.info, task.config, devices)
    size = min(task.config.evaluate.batch_size, len(test))
    shares = Evaluator(task.network, devices).probabilities(variables, examples, size)

    def images(indices: np.ndarray) -> np.ndarray:
        return np.asarray(streams.read_now(examples, indices, 0).at(jnp.asarray(indices)).images)

    predicted, confidences = shares.argmax(-1), shares.max(-1)
    confusion = confusion_matrix(labels, predicted, len(names))
    is_wrong = predicted != labels
    worst = np.argsort(-confidences * is_wrong, kind="stable")
    worst = worst[: min(_MOST_PICTURES, int(is_wrong.sum()))]
    titles = [
        f"{names[predicted[i]]} {100 * confidences[i]:.0f} %\nis {names[labels[i]]}" for i in worst
    ]
    first = np.unique(labels, return_index=True)[1][: 2 * _MOST_PICTURES]
    bins, error = calibration(confidences, ~is_wrong)
    return TestFindings(
        confusion,
        *precision_and_recall(confusion),
        bins,
        error,
        Pictures(images(worst), titles),
        Pictures(images(first), [names[labels[i]] for i in first]),
    )


def _first_filters(run: Run, variables: Tree) -> np.ndarray:
    path = next(layer.path for layer in run.layers if layer.kind == "Conv")
    return np.asarray(dict(named_leaves(variables["params"]))[f"{path}/kernel"], np.float32)


def _text(name: str) -> str:
    return name.encode(errors="backslashreplace").decode()
