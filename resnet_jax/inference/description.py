"""What weights of a run say of themselves in a file of their own."""

import pathlib

import jax

from resnet_jax.inference.scores import all_class_names
from resnet_jax.runs import folder as folders
from resnet_jax.runs import records
from resnet_jax.training.state import TrainState
from resnet_jax.training.task import Task
from resnet_jax.weights.info import WeightsInfo


def describe(workdir: pathlib.Path, task: Task, state: TrainState) -> WeightsInfo:
    """Returns what there is to tell of a checkpoint.

    Args:
      workdir: the folder of the run.
      task: what the run is made of.
      state: the checkpoint.
    """
    config, info = task.config, task.info
    provenance = folders.told(next(iter(folders.starts(workdir)), {}))
    return WeightsInfo(
        model=config.model.name,
        options=config.model.options.to_dict(),
        dataset=info.name,
        image_shape=info.image_shape,
        image_size=config.data.image_size,
        class_names=all_class_names(info.class_names, config.model.num_classes),
        mean=config.data.mean,
        std=config.data.std,
        test_time_augmentation=config.evaluate.test_time_augmentation,
        num_parameters=sum(leaf.size for leaf in jax.tree.leaves(state.variables()["params"])),
        provenance=provenance | {"seed": config.seed, "config": config.to_dict()},
        test_accuracy=_test_accuracy(workdir, task, int(state.step)),
    )


def _test_accuracy(workdir: pathlib.Path, task: Task, step: int) -> float | None:
    """Returns the accuracy that the closing record tells of a step, percent; None: it doesn't."""
    found, _ = records.read(workdir / folders.METRICS)
    if not found or found[-1]["kind"] != "final":
        return None
    final = found[-1]
    if final["step"] == step:
        return final["test_accuracy"]
    is_best = round(final["best_epoch"] * task.agenda.steps_per_epoch) == step
    return final["best_test_accuracy"] if is_best else None
