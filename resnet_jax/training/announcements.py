"""What a training says of itself before its first step and after its last."""

import pathlib
import shlex

import jax
from ml_collections import ConfigDict

from resnet_jax.data.splits import split_sizes
from resnet_jax.runs.records import Record
from resnet_jax.runs.terminal import duration
from resnet_jax.training.state import TrainState
from resnet_jax.training.task import Task


def opening(task: Task, source: str, images: str, state: TrainState, folder: pathlib.Path) -> str:
    """Returns what is said before the first step.

    Args:
      task: what is trained.
      source: where the images come from.
      images: where they are: "resident" or "streamed".
      state: the state that training starts from.
      folder: the folder of the run.
    """
    config, devices, step = task.config, jax.devices(), int(state.step)
    parameters = sum(leaf.size for leaf in jax.tree.leaves(state.params))
    sizes = split_sizes(task.info, config.data)
    counts = ", ".join(f"{size:,} {name}" for name, size in sizes.items())
    resumed = f", resuming after step {step:,}" if step else ""
    processes = f" in {jax.process_count()} processes" if jax.process_count() > 1 else ""
    if len(devices) > 1 and devices[0].platform == "cpu":
        processes += ", whose convolutions are XLA's"
    return "\n".join(
        [
            f"device  {len(devices)} x {devices[0].device_kind}{processes}, jax {jax.__version__}",
            f"model   {config.model.name}, {parameters:,} parameters, {config.model.dtype}",
            f"data    {source}: {counts} images, {images}",
            f"run     {folder}, {config.num_epochs} epochs of {task.agenda.steps_per_epoch:,} steps"
            f"{resumed}",
        ]
    )


def closing(config: ConfigDict, final: Record, folder: pathlib.Path) -> str:
    """Returns what is said when a run is finished, of its closing record."""

    def percent(accuracy: float | None) -> str:
        return "unknown" if accuracy is None else f"{accuracy:.2f} %"

    train = final["train_accuracy"]
    training = "" if train is None else f", train accuracy {percent(train)}"
    chosen = ""
    if config.evaluate.split == "val":
        chosen = f", chosen by validation, {final['best_score']:.2f} %"
    elif config.evaluate.every_epochs or config.evaluate.every_steps:
        chosen = ", chosen by the test set itself"
    command = f"python -m resnet_jax.main --mode=eval --workdir={shlex.quote(str(folder))}"
    return "\n".join(
        [
            f"final   test accuracy {percent(final['test_accuracy'])} after epoch "
            f"{final['epoch']:g}{training}",
            f"best    test accuracy {percent(final['best_test_accuracy'])} after epoch "
            f"{final['best_epoch']:g}{chosen}",
            f"time    {duration(final['seconds'])} in all",
            f"again   {command}",
        ]
    )
