"""What a start of a training begins with: its newest checkpoint, or its first state."""

import contextlib
import os
import pathlib
from typing import Any

from ml_collections import ConfigDict

from resnet_jax import hosts
from resnet_jax.config.load import leaves
from resnet_jax.errors import UserError
from resnet_jax.platform import compute_dtype
from resnet_jax.runs import folder as folders
from resnet_jax.runs.checkpoints import Checkpoints, Run
from resnet_jax.runs.terminal import Terminal
from resnet_jax.training.restore import load_run
from resnet_jax.training.state import TrainState, Tree
from resnet_jax.training.task import Task
from resnet_jax.trees import named_leaves, with_leaves
from resnet_jax.weights.info import WeightsInfo, read_info
from resnet_jax.weights.load import adapted_variables
from resnet_jax.weights.pretrained import weights_file
from resnet_jax.weights.torch_files import TorchFile
from resnet_jax.weights.torch_weights import fill

# Where each host finds and reads its images.
_OF_A_HOST = {"data.name", "data.source", "data.dir", "data.workers"}


def settled_dtype(wanted: str, workdir: str | os.PathLike[str]) -> str:
    """Returns the dtype of a training: what is asked for, and for "auto" what the run began in."""
    began = hosts.share(lambda: folders.dtype(workdir) if wanted == "auto" else "")
    if wanted == "auto" and began:
        with contextlib.suppress(UserError):  # `begin` says what differs
            return compute_dtype(began)
    return compute_dtype(wanted)


def check_same(config: ConfigDict, digest: str, images: str) -> None:
    """Refuses a process whose config, data or memory differ from those of the first.

    Args:
      config: the whole config.
      digest: that of the dataset.
      images: where they are: "resident" or "streamed".

    Raises:
      UserError: if it was.
    """
    told = {path: value for path, value in leaves(config).items() if path not in _OF_A_HOST}
    told |= {"data (its digest)": digest, "images (see data.resident_bytes)": images}
    first = hosts.share(lambda: told)
    for name in sorted(first | told):
        there, here = first.get(name), told.get(name)
        if there != here:
            raise UserError(f"the first process has another config: {name} is {there}, here {here}")


def starting_point(
    task: Task, folder: pathlib.Path, checkpoints: Checkpoints, terminal: Terminal
) -> tuple[TrainState, Run | None]:
    """Returns the state that training starts from and, of a checkpoint, what was saved beside it.

    All processes start from what the first one finds.

    Args:
      task: what is trained.
      folder: the folder of the run.
      checkpoints: those of the run.
      terminal: where it is said what a new run starts from.
    """

    def find() -> dict[str, Any]:
        state, saved, records = checkpoints.restore_newest(task.template), None, b""
        if state is None:
            state = _first_state(task, terminal)
        else:
            saved = checkpoints.run(int(state.step))
            with contextlib.suppress(FileNotFoundError):
                records = (folder / folders.METRICS).read_bytes()
        return {"state": dict(named_leaves(state)), "saved": saved, "records": records}

    found = hosts.share(find)
    if found["saved"] and not hosts.is_first():
        (folder / folders.METRICS).write_bytes(found["records"])
    return with_leaves(task.template, found["state"]), found["saved"]


def _first_state(task: Task, terminal: Terminal) -> TrainState:
    """Returns the state before the first step: of random weights, of a file's, or of a run's."""
    config, variables, init = task.config, None, task.config.init.weights
    module, arguments = task.network.module, (task.input_shape, config.seed, terminal.note)
    if os.path.isdir(init):
        variables = adapted_variables(_run_variables(init), init, module, *arguments)
    elif init:
        file = TorchFile(weights(config, terminal))
        if (info := read_info(file)) and (differ := _differing(info, task)):
            terminal.note(f"the weights were trained with other {', '.join(differ)}")
        variables = fill(module, file, "fit", *arguments)
    return task.create_state(variables)


def _differing(info: WeightsInfo, task: Task) -> list[str]:
    """Returns what of the images that weights were trained on is not that of this training."""
    pairs = {
        "data.mean": (info.mean, task.config.data.mean),
        "data.std": (info.std, task.config.data.std),
        "classes": (info.class_names, task.info.class_names),
    }
    return [name for name, (theirs, ours) in pairs.items() if tuple(theirs) != tuple(ours)]


def _run_variables(workdir: str) -> Tree:
    try:
        return load_run(workdir).variables
    except UserError as error:
        raise UserError(f"config field init.weights names a folder: {error}") from None


def weights(config: ConfigDict, terminal: Terminal) -> pathlib.Path:
    """Returns the file of weights that the config starts from, which may have to be fetched."""
    return weights_file(config.init.weights, config.model.name, terminal.note, terminal.bar)
