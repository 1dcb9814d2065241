"""A whitening first layer: its outputs are uncorrelated on patches of the training images."""

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from resnet_jax.errors import UserError
from resnet_jax.training.state import TrainState, Tree

LAYER = "whitening"


def check(config: ConfigDict, state: TrainState) -> None:
    """Refuses a config that whitens the first layer of a model that has no such layer.

    Args:
      config: the whole config.
      state: the shapes of its training state.

    Raises:
      UserError: if it does.
    """
    if config.init.whitening_images and LAYER not in state.params:
        raise UserError(
            f"config field init.whitening_images is {config.init.whitening_images} but model "
            f"{config.model.name} has no whitening layer; set it to 0"
        )


def whiten(state: TrainState, images: jax.Array, epsilon: float) -> TrainState:
    """Returns a state before its first step with the kernel of the whitening layer set.

    Args:
      state: the state.
      images: what the model takes, float32 `[batch, height, width, channels]`.
      epsilon: added to the variance of each direction.
    """
    old = state.params[LAYER]["kernel"]
    kernel = whitening_kernel(images, old.shape[0], epsilon).astype(old.dtype)

    def whitened(params: Tree) -> Tree:
        return params | {LAYER: params[LAYER] | {"kernel": jnp.copy(kernel)}}

    average = state.average
    if average:
        average = average | {"params": whitened(average["params"])}
    return state.replace(params=whitened(state.params), average=average)


def whitening_kernel(images: jax.Array, size: int, epsilon: float) -> jax.Array:
    """Returns filters that map patches to their principal directions, each scaled to variance 1.

    The second half are the negatives of the first, so that no sign is lost in an activation (Page
    2019, "How to Train Your ResNet 8"). The covariance is about zero, not about the mean.

    Args:
      images: float32 `[batch, height, width, channels]`.
      size: side of a patch, pixels.
      epsilon: added to the variance of each direction.

    Returns:
      float32 `[size, size, channels, 2 * size * size * channels]`.
    """
    _, height, width, channels = images.shape
    offsets = [(i, j) for i in range(size) for j in range(size)]
    rows, columns = height - size + 1, width - size + 1
    patches = jnp.concatenate(
        [images[:, i : i + rows, j : j + columns] for i, j in offsets], axis=-1
    )
    patches = patches.reshape(-1, patches.shape[-1])
    highest = jax.lax.Precision.HIGHEST  # accelerators would round the inputs
    covariance = jnp.matmul(patches.T, patches, precision=highest) / len(patches)
    variances, directions = jnp.linalg.eigh(covariance)
    filters = directions / jnp.sqrt(variances + epsilon)
    return jnp.concatenate([filters, -filters], axis=1).reshape(size, size, channels, -1)
