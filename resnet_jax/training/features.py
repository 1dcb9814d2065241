"""Features of a frozen part of a model, computed once for all images."""

import functools
import re
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax.errors import InvalidRngError
from jax import lax
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
    stage, count = config.init.cached_stage, devices.mesh.size
    size = -(-min(config.evaluate.batch_size, len(examples)) // count) * count

    def features(variables: Tree, examples: Examples, indices: jax.Array) -> jax.Array:
        inputs = network.inputs(examples.at(indices).images)
        options = {"train": False, "stage": stage, "method": "features"}
        found: jax.Array = network.module.apply(variables, inputs, **options)  # type: ignore
        return found

    @functools.partial(jax.jit, donate_argnums=0, out_shardings=devices.replicated)
    def add(found: jax.Array, start: int, *batch: Any) -> jax.Array:
        return lax.dynamic_update_slice_in_dim(found, features(*batch), start, 0)

    images = None  # one array for all: they may take most of the memory
    rows = -(-len(examples) // size) * size  # with what fills the last batch up
    reads = padded_reads(examples, size)
    for start, (indices, _, read) in zip(range(0, rows, size), reads, strict=True):
        batch = variables, devices.feed(read), devices.split(indices)
        if images is None:
            like = jax.eval_shape(features, *batch)
            images = devices.put(jnp.zeros((rows, *like.shape[1:]), like.dtype))
        images = add(images, start, *batch)
        if progress:
            progress("features", min(start + size, len(examples)), len(examples))
    assert images is not None, "a part has images"
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
        trained or has dropout, or if images are augmented.
    """
    stage = config.init.cached_stage
    field = f"config field init.cached_stage is {stage}"
    if not hasattr(model, "classify"):
        raise UserError(f"{field} but model {config.model.name} can't be cut after a stage")
    if config.augment.to_dict() != default_config().augment.to_dict():
        raise UserError(f"{field} but images are augmented; turn the fields of augment off")

    images = jnp.zeros((2, *image_shape))

    def trained(variables: Tree) -> Any:
        options = {"train": True, "stage": stage, "mutable": ["batch_stats"]}
        return model.apply(variables, images, method="features", **options)

    try:
        jax.eval_shape(trained, variables)
    except InvalidRngError:
        raise UserError(f"{field} but dropout changes its features; turn it off") from None

    def rest(variables: Tree) -> Tree:
        options = {"train": False, "stage": stage}
        features = model.apply(variables, images, method="features", **options)
        return model.init(jax.random.key(0), features, method="classify", **options)["params"]

    later = {path for path, _ in named_leaves(jax.eval_shape(rest, variables))}
    for path, _ in named_leaves(variables["params"]):
        frozen = config.optimizer.frozen and re.search(config.optimizer.frozen, path)
        if path not in later and not frozen:
            raise UserError(f"{field} but optimizer.frozen does not match {path}, which is before")
