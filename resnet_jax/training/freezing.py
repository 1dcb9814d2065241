"""What transfer learning needs: parts of a model that are frozen, and their features, cached."""

import contextlib
import re
from collections.abc import Callable, Iterator
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from resnet_jax.config.load import default_config
from resnet_jax.data.datasets import Examples
from resnet_jax.data.order import padded_batches
from resnet_jax.errors import UserError
from resnet_jax.models.layers import StagedClassifier
from resnet_jax.models.normalization import BatchNorm
from resnet_jax.trees import map_with_path, named_leaves

Tree = Any


def stop_frozen(params: Tree, frozen: str) -> Tree:
    """Returns the parameters, those that are frozen without a gradient.

    No backward pass is compiled for what comes before the first parameter that is trained.

    Args:
      params: the parameters.
      frozen: regular expression of the paths of frozen ones; empty: none.
    """
    if not frozen:
        return params
    return map_with_path(
        lambda path, leaf: jax.lax.stop_gradient(leaf) if re.search(frozen, path) else leaf
    )(params)


@contextlib.contextmanager
def frozen_norms(frozen: str) -> Iterator[None]:
    """Makes frozen norms normalise with their running statistics, which stay as they are.

    Args:
      frozen: regular expression of the paths of frozen parameters; empty: none.
    """

    def call(
        function: Callable[..., Any],
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        context: nn.module.InterceptorContext,
    ) -> Any:
        module = context.module
        if isinstance(module, BatchNorm) and "train" in kwargs:
            path = "/".join((*module.path, "scale"))
            kwargs = kwargs | {"train": kwargs["train"] and not re.search(frozen, path)}
        return function(*args, **kwargs)

    if not frozen:
        yield
        return
    with nn.intercept_methods(call):
        yield


def cache_features(
    model: nn.Module,
    variables: Tree,
    examples: Examples,
    inputs: Callable[[jax.Array], jax.Array],
    config: ConfigDict,
) -> Examples:
    """Returns examples whose images are the outputs of a frozen stage, in the model's dtype.

    Args:
      model: the model.
      variables: its variables.
      examples: the images, on device.
      inputs: maps uint8 images to what the model takes.
      config: the whole config.
    """
    stage, size = config.init.cached_stage, min(config.evaluate.batch_size, len(examples))

    @jax.jit
    def features(variables: Tree, examples: Examples, indices: jax.Array) -> jax.Array:
        return _output(model, variables, inputs(examples.images[indices]), stage)

    batches = [features(variables, examples, i) for i, _ in padded_batches(len(examples), size)]
    return Examples(jnp.concatenate(batches)[: len(examples)], examples.labels)


def check_cached_stage(
    model: nn.Module, variables: Tree, inputs: jax.ShapeDtypeStruct, config: ConfigDict
) -> None:
    """Refuses to cache features that would change in the course of the training.

    Args:
      model: the model.
      variables: its variables.
      inputs: shape and dtype of a batch that the model takes.
      config: the whole config.

    Raises:
      UserError: if the model can't start after the stage, if the stage or one before it is
        trained, or if images are augmented.
    """
    stage = config.init.cached_stage
    field = f"config field init.cached_stage is {stage}"
    if not isinstance(model, StagedClassifier):
        raise UserError(f"{field} but model {config.model.name} can't start after a stage")
    if config.augment.to_dict() != default_config().augment.to_dict():
        raise UserError(f"{field} but images are augmented; turn the fields of augment off")

    def rest(variables: Tree, images: jax.Array) -> Tree:
        features = _output(model, variables, images, stage)
        key, options = jax.random.key(0), {"train": False, "stage": stage}
        return model.init(key, features, method="classify", **options)["params"]

    try:
        used = jax.eval_shape(rest, variables, inputs)
    except KeyError:
        raise UserError(f"{field} but model {config.model.name} has no such stage") from None
    later = {path for path, _ in named_leaves(used)}
    for path, _ in named_leaves(variables["params"]):
        frozen = config.optimizer.frozen and re.search(config.optimizer.frozen, path)
        if path not in later and not frozen:
            raise UserError(f"{field} but optimizer.frozen does not match {path}, which is before")


def _output(model: nn.Module, variables: Tree, images: jax.Array, stage: int) -> jax.Array:
    _, mutated = model.apply(variables, images, train=False, mutable=["intermediates"])
    return mutated["intermediates"][f"stage{stage}"][0]
