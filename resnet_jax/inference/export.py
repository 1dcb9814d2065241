"""PyTorch weights from runs."""

import os
import pathlib

from resnet_jax.training.restore import load_run
from resnet_jax.weights.torch_files import write_safetensors
from resnet_jax.weights.torch_weights import state_dict


def export_torch(
    workdir: str | os.PathLike[str], path: str | os.PathLike[str], which: str = "best"
) -> pathlib.Path:
    """Writes a checkpoint of a run as a state dict that PyTorch reads (by `safetensors.torch`).

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
    run = load_run(workdir, which)
    write_safetensors(path, state_dict(run.model, run.variables))
    return pathlib.Path(path)
