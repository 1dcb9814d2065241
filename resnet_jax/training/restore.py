"""Runs restored from their folders."""

import contextlib
import os
import pathlib
from typing import NamedTuple

import flax.linen as nn
from ml_collections import ConfigDict

from resnet_jax.config.load import selects
from resnet_jax.data.datasets import DatasetInfo
from resnet_jax.errors import UserError, unknown
from resnet_jax.runs import folder as folders
from resnet_jax.runs.checkpoints import Checkpoints, DamagedError
from resnet_jax.runs.records import ranked
from resnet_jax.training.state import TrainState, Tree
from resnet_jax.training.task import Task, create_task


class Restored(NamedTuple):
    """A run with one of its checkpoints.

    Attributes:
      model: the module.
      variables: its parameters and statistics, or their moving average if the run keeps one.
      info: the dataset that it was trained on.
      config: its config.
    """

    model: nn.Module
    variables: dict[str, Tree]
    info: DatasetInfo
    config: ConfigDict


def load_run(workdir: str | os.PathLike[str], which: str = "best") -> Restored:
    """Returns the module of a run, its variables, its dataset's description and its config.

    Args:
      workdir: the folder of the run.
      which: "best", the best by the run's own scores (the newest where they may not choose), or
        "newest".

    Raises:
      UserError: if there is no run, or no checkpoint that can be used.
    """
    task, state = restore(workdir, which)
    return Restored(task.network.module, state.variables(), task.info, task.config)


def restore(workdir: str | os.PathLike[str], which: str) -> tuple[Task, TrainState]:
    """Returns what a run is made of and a state without that of the optimizer; see `load_run`."""
    if which not in (known := ("best", "newest")):
        raise unknown("checkpoint", which, known)
    config, info = folders.read_run(workdir)
    task = create_task(config, DatasetInfo.from_json(info))
    directory = pathlib.Path(workdir) / folders.CHECKPOINTS
    with contextlib.closing(Checkpoints(directory)) as checkpoints:
        steps, run = checkpoints.steps(), checkpoints.newest_run()
        if which == "best" and selects(config) and run is not None:
            steps = ranked(run["scores"], steps)
        for step in steps:
            try:
                return task, checkpoints.restore(task.template, step, without="opt_state")
            except DamagedError as error:
                checkpoints.notify(f"checkpoint {step} is damaged: {error}")
    raise UserError(f"no {which} checkpoint in {directory} can be used")
