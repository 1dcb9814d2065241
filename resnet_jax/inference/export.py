"""What a run leaves for others: PyTorch weights, and a program for any machine that has jax."""

import os
import pathlib
import tempfile
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from resnet_jax.errors import UserError, needing
from resnet_jax.files import write_atomically, writing
from resnet_jax.inference.model_card import complete_folder
from resnet_jax.inference.scores import all_class_names
from resnet_jax.runs import folder as folders
from resnet_jax.runs import records
from resnet_jax.training.restore import restore
from resnet_jax.training.state import TrainState, Tree
from resnet_jax.training.step import Network
from resnet_jax.training.task import Task
from resnet_jax.weights import hub
from resnet_jax.weights.info import WeightsInfo
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
    info = _describe(pathlib.Path(workdir), task, state)
    write_safetensors(path, state_dict(task.network.module, state.variables()), info.header())
    return pathlib.Path(path)


def export_stablehlo(
    workdir: str | os.PathLike[str], path: str | os.PathLike[str], which: str = "best"
) -> pathlib.Path:
    """Writes a checkpoint of a run as a program that needs nothing but jax and flatbuffers.

    `jax.export.deserialize(pathlib.Path(path).read_bytes()).call(images)` takes any number of
    images, uint8 `[batch, height, width, channels]`, on a CPU, CUDA or TPU, and returns the
    probabilities of their classes, float32 `[batch, num_classes]`. The weights are in it.

    Args:
      workdir: the folder of the run.
      path: the file, of suffix `.stablehlo`.
      which: "best" or "newest"; see `resnet_jax.load_run`.

    Returns:
      The path.

    Raises:
      UserError: if there is no checkpoint that can be used, the file can't be written, or
        flatbuffers is missing.
    """
    task, state = restore(workdir, which)
    content = program(task.network, jax.device_get(state.variables()), task.info.image_shape)
    path = pathlib.Path(path)
    with writing(path):
        write_atomically(path, content)
    return path


def program(network: Network, variables: Tree, image_shape: Sequence[int]) -> bytes:
    """Returns a classifier as a serialized program; see `export_stablehlo`.

    Args:
      network: a module, and what images go through before it.
      variables: its parameters and statistics.
      image_shape: `(height, width, channels)` of an image.

    Raises:
      UserError: if flatbuffers is missing.
    """

    @jax.jit
    def classify(images: jax.Array) -> jax.Array:
        return jax.nn.softmax(network.logits(variables, images))

    (batch,) = jax.export.symbolic_shape("batch")
    images = jax.ShapeDtypeStruct((batch, *image_shape), jnp.uint8)
    exported = jax.export.export(classify, platforms=("cpu", "cuda", "tpu"))(images)
    with needing("export", "--mode=export"):
        return bytes(exported.serialize())


def export_hub(workdir: str | os.PathLike[str], address: str, which: str = "best") -> str:
    """Uploads a checkpoint of a run to the Hugging Face hub, with a card that says what it is.

    `resnet_jax.load_model(address)` loads it.

    Args:
      workdir: the folder of the run.
      address: `hf://user/name`; the repository is made if need be.
      which: "best" or "newest"; see `resnet_jax.load_run`.

    Returns:
      The address.

    Raises:
      UserError: if there is no checkpoint that can be used, no token of the hub, or the hub refuses
        or is out of reach.
    """
    with tempfile.TemporaryDirectory() as scratch:
        folder = pathlib.Path(scratch)
        export_torch(workdir, folder / hub.FILE, which)
        complete_folder(folder, address)
        hub.publish(folder, address)
    return address


_FORMATS = {".safetensors": export_torch, ".stablehlo": export_stablehlo}


def export(workdir: str | os.PathLike[str], path: str | os.PathLike[str]) -> str | pathlib.Path:
    """Writes the best checkpoint of a run in the format that a file's suffix says.

    Args:
      workdir: the folder of the run.
      path: the file, of suffix `.safetensors` for PyTorch, or `.stablehlo` for a program; or an
        address of the Hugging Face hub, `hf://user/name`.

    Returns:
      The path, or the address.

    Raises:
      UserError: as those do, or if the suffix is another.
    """
    if hub.is_address(path):
        return export_hub(workdir, os.fspath(path))
    suffix = pathlib.Path(path).suffix
    if suffix not in _FORMATS:
        raise UserError(
            f"--output {path}: the file ends in {' or '.join(_FORMATS)}; or hf://user/name"
        )
    return _FORMATS[suffix](workdir, path)


def _describe(workdir: pathlib.Path, task: Task, state: TrainState) -> WeightsInfo:
    """Returns what weights of a run say of themselves in a file of their own."""
    config, info = task.config, task.info
    provenance = folders.told(next(iter(folders.starts(workdir)), {}))
    return WeightsInfo(
        model=config.model.name,
        options=config.model.options.to_dict(),
        dataset=_short(_without_folders(info.name)),
        image_shape=info.image_shape,
        image_size=config.data.image_size,
        class_names=tuple(map(_short, all_class_names(info.class_names, config.model.num_classes))),
        mean=config.data.mean,
        std=config.data.std,
        test_time_augmentation=config.evaluate.test_time_augmentation,
        num_parameters=sum(leaf.size for leaf in jax.tree.leaves(state.variables()["params"])),
        provenance=provenance | {"seed": config.seed, "config": told(config)},
        test_accuracy=_test_accuracy(workdir, task, int(state.step)),
    )


def told(config: ConfigDict) -> dict[str, Any]:
    """Returns a config without the folders of this machine."""
    told: dict[str, Any] = config.to_dict()
    told["data"] |= {"dir": "", "name": _without_folders(config.data.name)}
    if not hub.is_address(config.init.weights):
        told["init"]["weights"] = os.path.basename(config.init.weights.rstrip("/"))
    return told


def _without_folders(name: str) -> str:
    """Returns the name of a dataset without the folders that its own folder or file is in."""
    kind, colon, path = name.partition(":")
    if kind in ("folder", "npz"):
        return f"{kind}{colon}{os.path.basename(path.rstrip('/'))}"
    return os.path.basename(name) if os.path.isabs(name) else name


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


def _short(name: str) -> str:
    """Returns a name as a file of weights may have it: printable, of at most 200 characters."""
    return "".join(letter if letter.isprintable() else "?" for letter in name)[:200]
