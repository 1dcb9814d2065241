"""PyTorch weights from runs."""

import os
import pathlib

from resnet_jax.inference.description import describe
from resnet_jax.training.restore import restore
from resnet_jax.weights.torch_files import write_safetensors
from resnet_jax.weights.torch_weights import state_dict


def export_torch(
    workdir: str | os.PathLike[str], path: str | os.PathLike[str], which: str = "best"
) -> pathlib.Path:
    """Writes a checkpoint of a run as a state dict that PyTorch reads (by `safetensors.torch`).

    A `resnet_jax.WeightsInfo` in its header tells `--mode=predict --weights=FILE` what it is for.

    Args:
      workdir: the folder of the run.
      path: the file, of suffix `.safetensors`; its keys are those of the family's usual PyTorch
        implementation.
      which: "best" or "newest"; see `resnet_jax.load_run`.

    Returns:
      The path.

    Raises:
      UserError: if there is no checkpoint that can be used, or the file can't be written.
    """
    task, state = restore(workdir, which)
    info = describe(pathlib.Path(workdir), task, state)
    write_safetensors(path, state_dict(task.network.module, state.variables()), info.header())
    return pathlib.Path(path)
