"""Runs from PyTorch weights, and PyTorch weights from runs."""

import contextlib
import os
import pathlib
from collections.abc import Callable

from ml_collections import ConfigDict

from resnet_jax.config import load as config_lib
from resnet_jax.data.pipeline import input_shape
from resnet_jax.errors import UserError
from resnet_jax.inference.evaluate import restore
from resnet_jax.runs import folder as workdir_lib
from resnet_jax.runs.checkpoints import Checkpoints
from resnet_jax.training.optimizers import create_optimizer
from resnet_jax.training.state import create_state
from resnet_jax.training.task import build_model, check, weights_path
from resnet_jax.weights import torch_weights
from resnet_jax.weights.torch_files import TorchFile, write


def import_run(
    config: ConfigDict,
    workdir: str | os.PathLike[str],
    notify: Callable[[str], None] = print,
) -> torch_weights.Imported:
    """Begins a run: saves its state before the first step, with the weights of `init.weights`.

    The run can be scored, exported, and trained by its config. A head of the file that does not fit
    `model.num_classes` is replaced by a new one.

    Args:
      config: the config of the run.
      workdir: the folder of the run, which must hold no checkpoint yet.
      notify: is told of a download.

    Raises:
      UserError: if config, file or folder can't be used, or the file does not fit the model.
    """
    config = config_lib.validate(config)
    check(config)
    if not config.init.weights:
        raise UserError("name the PyTorch file to import, by --config.init.weights=FILE")
    model, shape = build_model(config), input_shape(config.data)
    file = TorchFile(weights_path(config, notify))
    imported = torch_weights.fill(file, model, "fit", image_shape=shape, seed=config.seed)
    optimizer = create_optimizer(config.optimizer)
    with workdir_lib.claim(workdir) as folder:
        checkpoints = Checkpoints(folder / workdir_lib.CHECKPOINTS, config.checkpoint.keep)
        with contextlib.closing(checkpoints):
            if checkpoints.steps():
                raise UserError(f"--workdir {folder} holds a run already; name another folder")
            info = {"name": config.data.source, "digest": ""}
            workdir_lib.begin(folder, config, info, None)
            state = create_state(model, optimizer, config, shape, imported.variables)
            run = {"config": config.to_dict(), "dataset": info, "scores": [], "num_records": 0}
            checkpoints.save(0, state, run)
    return imported


def export_torch(
    workdir: str | os.PathLike[str], path: str | os.PathLike[str], which: str = "best"
) -> pathlib.Path:
    """Writes a checkpoint of a run as a PyTorch state dict.

    Args:
      workdir: the folder of the run.
      path: the file, of suffix `.pth`, `.pt`, `.th` or `.safetensors`, which says the format; its
        keys are those of the family's usual PyTorch implementation.
      which: "best" or "newest"; see `resnet_jax.load_checkpoint`.

    Returns:
      The path.

    Raises:
      UserError: if there is no checkpoint that can be used, or the file can't be written.
    """
    restored = restore(workdir, which)
    write(path, torch_weights.state_dict(restored.model, restored.variables))
    return pathlib.Path(path)
