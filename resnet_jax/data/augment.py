"""Augmentation: pure functions on a batch of images, for use inside `jit`.

Images are float32 `[batch, height, width, channels]` in [0, 1].
"""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
from jax import lax
from ml_collections import ConfigDict


def augment(
    key: jax.Array,
    images: jax.Array,
    labels: jax.Array,
    indices: jax.Array,
    epoch: jax.Array,
    config: ConfigDict,
    *,
    mean: Sequence[float],
    num_classes: int,
    flip_key: jax.Array | None = None,
) -> tuple[jax.Array, jax.Array]:
    """Augments a batch.

    Args:
      key: key of the seed, the purpose and the step.
      images: float32 `[batch, height, width, channels]` in [0, 1].
      labels: int32 `[batch]`.
      indices: position of each image in the training set, int32 `[batch]`.
      epoch: the epoch, an int32 scalar.
      config: the group `augment` of a config.
      mean: the colour that erased pixels get, per channel.
      num_classes: number of classes.
      flip_key: key of the seed and the purpose, the same in every step; alternating flip needs it.

    Returns:
      Images, float32 of the same shape, and targets, float32 `[batch, num_classes]`.
    """
    keys = jax.random.split(key, 8)
    if config.crop_padding:
        images = random_crop(keys[0], images, config.crop_padding, config.crop_mode)
    if config.flip == "random":
        images = flip_where(jax.random.bernoulli(keys[1], shape=labels.shape), images)
    elif config.flip == "alternating":
        if flip_key is None:
            raise ValueError("alternating flip needs flip_key")
        images = flip_where(alternating_coin(flip_key, indices, epoch), images)
    if config.cutout:
        images = cutout(keys[4], images, config.cutout, mean)
    targets = jax.nn.one_hot(labels, num_classes)
    return images, targets


def normalize(images: jax.Array, mean: Sequence[float], std: Sequence[float]) -> jax.Array:
    """Returns (images - mean) / std, per channel, float32.

    Args:
      images: `[batch, height, width, channels]` in [0, 1].
      mean: mean of each channel.
      std: deviation of each channel.
    """
    shift, scale = jnp.asarray(mean, jnp.float32), jnp.asarray(std, jnp.float32)
    return (images.astype(jnp.float32) - shift) / scale


def random_crop(key: jax.Array, images: jax.Array, padding: int, mode: str) -> jax.Array:
    """Pads all sides and crops each image to its old size at a random offset.

    Args:
      key: PRNG key.
      images: float32 `[batch, height, width, channels]`.
      padding: pixels added on each side.
      mode: "zero" or "reflect", what the added pixels are.
    """
    batch, *shape = images.shape
    width = ((0, 0), (padding, padding), (padding, padding), (0, 0))
    padded = jnp.pad(images, width, mode="constant" if mode == "zero" else mode)
    offsets = jax.random.randint(key, (batch, 2), 0, 2 * padding + 1)

    # Of seven formulations this is the fastest on CPU: XLA copies whole windows.
    def crop(image: jax.Array, offset: jax.Array) -> jax.Array:
        return lax.dynamic_slice(image, (offset[0], offset[1], 0), shape)

    return jax.vmap(crop)(padded, offsets)


def flip_where(flipped: jax.Array, images: jax.Array) -> jax.Array:
    """Mirrors those images, `[batch, height, width, channels]`, that `flipped` `[batch]` marks."""
    return jnp.where(flipped[:, None, None, None], images[:, :, ::-1], images)


def alternating_coin(key: jax.Array, indices: jax.Array, epoch: jax.Array) -> jax.Array:
    """Returns which images to flip: at random in epoch 0, from then on every other epoch.

    So every image is seen from both sides in every two epochs (Jordan 2024, "94% on CIFAR-10 in
    3.29 Seconds").

    Args:
      key: key that does not change between steps.
      indices: position of each image in the training set, int32 `[batch]`.
      epoch: the epoch, an int32 scalar.

    Returns:
      bool `[batch]`.
    """

    def coin(index: jax.Array) -> jax.Array:
        return jax.random.bits(jax.random.fold_in(key, index), dtype=jnp.uint32) % 2

    return (jax.vmap(coin)(indices) + epoch) % 2 == 1


def cutout(key: jax.Array, images: jax.Array, side: int, mean: Sequence[float]) -> jax.Array:
    """Sets a square to the mean (DeVries and Taylor 2017); it may reach over the border.

    Args:
      key: PRNG key.
      images: float32 `[batch, height, width, channels]`.
      side: side of the square, pixels.
      mean: the colour of the square, per channel.
    """
    batch, height, width, _ = images.shape
    key_y, key_x = jax.random.split(key)
    top = jax.random.randint(key_y, (batch,), 0, height) - side // 2
    left = jax.random.randint(key_x, (batch,), 0, width) - side // 2
    inside = rectangles(top, left, side, side, height, width)
    return jnp.where(inside[..., None], jnp.asarray(mean, images.dtype), images)


def rectangles(
    top: jax.Array,
    left: jax.Array,
    rows: jax.Array | int,
    columns: jax.Array | int,
    height: int,
    width: int,
) -> jax.Array:
    """Returns which pixels lie in each image's rectangle, bool `[batch, height, width]`.

    Args:
      top: first row, int32 `[batch]`; may be outside.
      left: first column, int32 `[batch]`; may be outside.
      rows: number of rows, scalar or `[batch]`.
      columns: number of columns, scalar or `[batch]`.
      height: height of the images.
      width: width of the images.
    """
    y, x = jnp.arange(height), jnp.arange(width)
    in_rows = (y >= top[:, None]) & (y < jnp.asarray(top + rows)[:, None])
    in_columns = (x >= left[:, None]) & (x < jnp.asarray(left + columns)[:, None])
    return in_rows[:, :, None] & in_columns[:, None, :]
