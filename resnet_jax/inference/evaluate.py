"""Exact evaluation of a finished or unfinished run."""

import contextlib
import os

from resnet_jax.config.load import selects
from resnet_jax.data.datasets import Dataset, DatasetInfo, input_shape
from resnet_jax.data.download import Progress
from resnet_jax.data.registry import open_dataset
from resnet_jax.errors import UserError
from resnet_jax.models.registry import variable_shapes
from resnet_jax.runs import folder as folders
from resnet_jax.runs.terminal import Terminal
from resnet_jax.training.devices import Devices, place
from resnet_jax.training.evaluator import Evaluator
from resnet_jax.training.restore import restore
from resnet_jax.training.state import TrainState
from resnet_jax.training.task import Task


def evaluate_run(
    workdir: str | os.PathLike[str],
    which: str = "best",
    batch_size: int | None = None,
    dataset: Dataset | None = None,
    progress: Progress | None = None,
) -> dict[str, float]:
    """Scores a checkpoint of a run on the test set, each image exactly once.

    Args:
      workdir: the folder of the run.
      which: see `resnet_jax.load_run`.
      batch_size: images per step, which does not change the result; None: that of the run.
      dataset: the images; None: those that the run's config names.
      progress: called with what goes on, how much of it is done and all of it.

    Returns:
      "step", "loss", "accuracy" in percent, and "count", the number of images.

    Raises:
      UserError: if there is no run, no checkpoint that can be used, or no data; if the data that
        the config names is not what the run was trained on; or if the dataset has other classes,
        channels or sizes than the model can take.
    """
    task, state = restore(workdir, which)
    dataset = dataset or load_run_dataset(task, progress)
    check_suits(task, dataset.info)
    return _score(task, state, dataset, batch_size, progress)


def check_suits(task: Task, info: DatasetInfo) -> None:
    """Refuses images of other classes, channels or sizes than a run's model can take."""
    wanted, given = _kind(task.info), _kind(info)
    if wanted != given:
        raise UserError(f"the run is for {wanted}, the dataset has {given}")
    names = zip(task.info.class_names, info.class_names, strict=True)
    for label, (ours, theirs) in enumerate(names):
        if ours != theirs:
            raise UserError(f"class {label} of the run is {ours!r}, of the dataset {theirs!r}")
    shape, module = input_shape(info, task.config.data), task.network.module
    own = task.input_shape
    if shape != own and variable_shapes(module, shape) != variable_shapes(module, own):
        (height, width, _), (rows, columns, _) = own, shape
        raise UserError(
            f"the run's model takes images of {height}x{width} pixels, the dataset's are "
            f"{rows}x{columns}"
        )


def _kind(info: DatasetInfo) -> str:
    return f"{len(info.class_names)} classes and {info.image_shape[-1]} channels"


def _score(
    task: Task,
    state: TrainState,
    dataset: Dataset,
    batch_size: int | None,
    progress: Progress | None,
) -> dict[str, float]:
    devices, config = Devices(), task.config
    evaluator = Evaluator(task.network, devices)
    variables = devices.put(state.variables())
    test = place(dataset.test, dataset.info, config, devices)
    batch_size = batch_size or config.evaluate.batch_size
    metrics = evaluator.score(variables, test, batch_size, progress)
    return {"step": int(state.step), **metrics.means(), "count": len(dataset.test)}


def load_run_dataset(task: Task, progress: Progress | None = None) -> Dataset:
    """Returns the data that a run was trained on, in memory.

    Raises:
      UserError: if there is no data, or what the config names is not what the run was trained on.
    """
    opened = open_dataset(task.config.data)
    if opened.info.digest != task.info.digest:
        if opened.info.name == task.info.name:
            raise UserError(
                f"the images of {task.info.name!r} have changed since the run was trained; restore "
                "them, or give those of then as `dataset`, from Python"
            )
        raise UserError(
            f"the run was trained on {task.info.name!r}, which its config does not name; give "
            "these images as `dataset`, from Python"
        )
    return opened.load(print, progress)


def print_scores(workdir: str) -> None:
    """Prints the scores of a run's newest checkpoint, and of the best one where it chose any."""
    config, dataset = folders.read_run(workdir)[0], None
    for which in ("newest", "best") if selects(config) else ("newest",):
        with contextlib.closing(Terminal()) as terminal:
            task, state = restore(workdir, which)
            dataset = dataset or load_run_dataset(task, terminal.bar)
            score = _score(task, state, dataset, None, terminal.bar)
        print(
            f"{which:8}checkpoint, step {score['step']:,}: test accuracy "
            f"{score['accuracy']:.2f} %, loss {score['loss']:.4f}, on {score['count']:,} images"
        )
