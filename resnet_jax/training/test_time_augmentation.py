"""Test-time augmentation: a prediction is the mean over views of an image."""

from collections.abc import Callable

import jax
import jax.numpy as jnp


def mean_logits(apply: Callable[[jax.Array], jax.Array], images: jax.Array, mode: str) -> jax.Array:
    """Returns the weighted mean of the logits of all views of each image.

    Args:
      apply: maps images to logits.
      images: `[batch, height, width, channels]`.
      mode: "none"; "mirror": the image and its mirror image; "multi_crop": half of that, and half
        of the same for the image moved by one pixel along the diagonal, both ways (Jordan 2024).

    Returns:
      Logits, `[batch, num_classes]`.
    """
    if mode == "none":
        return apply(images)

    def mirrored(images: jax.Array) -> jax.Array:
        return 0.5 * apply(images) + 0.5 * apply(images[:, :, ::-1])

    logits = mirrored(images)
    if mode == "mirror":
        return logits
    height, width = images.shape[1:3]
    padded = jnp.pad(images, ((0, 0), (1, 1), (1, 1), (0, 0)), mode="reflect")
    moved = mirrored(padded[:, :height, :width]) + mirrored(padded[:, 2:, 2:])
    return 0.5 * logits + 0.25 * moved
