"""What a start of a training begins with: its newest checkpoint, or its first state."""

import json
import os
import pathlib
from typing import Any

from ml_collections import ConfigDict

from resnet_jax import hosts
from resnet_jax.config.load import differences
from resnet_jax.errors import UserError
from resnet_jax.runs import folder as folders
from resnet_jax.runs.checkpoints import Checkpoints, Run
from resnet_jax.runs.terminal import Terminal
from resnet_jax.training.restore import load_run
from resnet_jax.training.state import TrainState, Tree
from resnet_jax.training.task import Task
from resnet_jax.trees import named_leaves, with_leaves
from resnet_jax.weights.load import adapted_variables, initial_variables
from resnet_jax.weights.pretrained import weights_file


def check_same(config: ConfigDict, digest: str) -> None:
    """Refuses a process that was started with another config, or has other data, than the first.

    Args:
      config: the whole config.
      digest: that of the dataset.

    Raises:
      UserError: if it was.
    """
    first = hosts.share(lambda: {"config": json.dumps(config.to_dict()), "digest": digest})
    if changed := differences(json.loads(first["config"]), config):
        raise UserError(f"the first process has another config: {'; '.join(changed)}")
    if first["digest"] != digest:
        raise UserError("the first process has other data")


def restored(
    task: Task, folder: pathlib.Path, checkpoints: Checkpoints
) -> tuple[TrainState | None, Run | None]:
    """Returns the newest state and what was saved beside it, as the first process has them."""

    def find() -> dict[str, Any] | None:
        state = checkpoints.restore_newest(task.template)
        if state is None:
            return None
        saved = json.dumps(checkpoints.run(int(state.step)))
        history = folder / folders.METRICS
        records = history.read_bytes() if history.exists() else b""
        return {"arrays": dict(named_leaves(state)), "saved": saved, "records": records}

    found = hosts.share(find)
    if found is None:
        return None, None
    if not hosts.is_first():
        (folder / folders.METRICS).write_bytes(found["records"])
    return with_leaves(task.template, found["arrays"]), json.loads(found["saved"])


def first_state(task: Task, terminal: Terminal) -> TrainState:
    """Returns the state before the first step: of random weights, of a file's, or of a run's."""
    config, variables, init = task.config, None, task.config.init.weights
    arguments = task.network.module, task.input_shape, config.seed, terminal.note
    if os.path.isdir(init):
        variables = adapted_variables(_run_variables(init), init, *arguments)
    elif init:
        variables = initial_variables(weights(config, terminal), *arguments)
    return task.create_state(variables)


def _run_variables(workdir: str) -> Tree:
    try:
        return load_run(workdir).variables
    except UserError as error:
        raise UserError(f"config field init.weights names a folder: {error}") from None


def weights(config: ConfigDict, terminal: Terminal) -> pathlib.Path:
    """Returns the file of weights that the config starts from, which may have to be fetched."""
    return weights_file(config.init.weights, config.model.name, terminal.note, terminal.bar)
