"""Features of a frozen part of a model, computed once for all images."""

import re

import flax.linen as nn
import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from resnet_jax.config import default_config
from resnet_jax.data.datasets import Examples
from resnet_jax.data.download import Progress
from resnet_jax.data.streams import Stream, padded_reads
from resnet_jax.errors import UserError
from resnet_jax.training.devices import Devices
from resnet_jax.training.state import Tree
from resnet_jax.training.step import Network
from resnet_jax.trees import named_leaves


def cache_features(
    network: Network,
    variables: Tree,
    examples: Examples | Stream,
    devices: Devices,
    progress: Progress | None = None,
) -> Examples:
    """Returns examples whose images are the outputs of the config's frozen stage.

    Args:
      network: the model.
      variables: its parameters and statistics, on the devices.
      examples: the images, on the devices or streamed.
      devices: the devices.
      progress: called with "features", the images done and all of them.

    Returns:
      Examples on the devices, their images in the dtype of the model's computation.
    """
    config = network.config
    stage, size = config.init.cached_stage, min(config.evaluate.batch_size, len(examples))

    @jax.jit
    def features(variables: Tree, examples: Examples, indices: jax.Array) -> jax.Array:
        inputs = network.inputs(examples.at(indices).images)
        options = {"train": False, "stage": stage, "method": "features"}
        found: jax.Array = network.module.apply(variables, inputs, **options)  # type: ignore
        return found

    batches = []
    for indices, _, read in padded_reads(examples, size):
        batches.append(features(variables, devices.feed(read), indices))
        if progress:
            progress("features", len(batches) * size, len(examples))
    images = devices.put(jnp.concatenate(batches)[: len(examples)])
    return Examples(images, devices.put(examples.labels))


def check_cached_stage(
    model: nn.Module, variables: Tree, image_shape: tuple[int, ...], config: ConfigDict
) -> None:
    """Refuses to cache features that would change in the course of the training.

    Args:
      model: the model.
      variables: its variables, or their shapes.
      image_shape: `(height, width, channels)` of what it takes.
      config: the whole config.

    Raises:
      UserError: if the model can't be cut after the stage, if the stage or one before it is
        trained, or if images are augmented.
    """
    stage = config.init.cached_stage
    field = f"config field init.cached_stage is {stage}"
    if not hasattr(model, "classify"):
        raise UserError(f"{field} but model {config.model.name} can't be cut after a stage")
    if config.augment.to_dict() != default_config().augment.to_dict():
        raise UserError(f"{field} but images are augmented; turn the fields of augment off")

    def rest(variables: Tree) -> Tree:
        images, options = jnp.zeros((2, *image_shape)), {"train": False, "stage": stage}
        features = model.apply(variables, images, method="features", **options)
        return model.init(jax.random.key(0), features, method="classify", **options)["params"]

    later = {path for path, _ in named_leaves(jax.eval_shape(rest, variables))}
    for path, _ in named_leaves(variables["params"]):
        frozen = config.optimizer.frozen and re.search(config.optimizer.frozen, path)
        if path not in later and not frozen:
            raise UserError(f"{field} but optimizer.frozen does not match {path}, which is before")
