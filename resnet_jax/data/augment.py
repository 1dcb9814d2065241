"""Augmentation: pure functions on a batch of images, for use inside `jit`.

Images are float32 `[batch, height, width, channels]` in [0, 1].
"""

from collections.abc import Mapping, Sequence

import jax
import jax.numpy as jnp
from jax import Array, lax
from ml_collections import ConfigDict

from resnet_jax.data import policies

# Each augmentation has a key of its own, so that switching one on leaves the others as they were.
_PURPOSES = ("crop", "flip", "policy", "jitter", "cutout", "erasing", "mix")

_COLORS = ("brightness", "contrast", "saturation")
STRENGTHS = ("policy_magnitude", *_COLORS, "erasing", "mixup", "cutmix")
"""The fields of the config that may be traced numbers; zero in the config: the part is absent."""

Scalar = Array | float
Floats = Sequence[float]


def augment(
    key: Array,
    images: Array,
    labels: Array,
    indices: Array,
    epoch: Array,
    config: ConfigDict,
    strengths: Mapping[str, Scalar],
    *,
    mean: Floats,
    num_classes: int,
    flip_key: Array,
) -> tuple[Array, Array]:
    """Augments a batch.

    Args:
      key: key of the seed, the purpose and the step.
      images: float32 `[batch, height, width, channels]` in [0, 1].
      labels: int32 `[batch]`.
      indices: position of each image in the training set, int32 `[batch]`.
      epoch: the epoch, an int32 scalar.
      config: the group `augment` of a config, which decides what is done.
      strengths: how strongly, by the names in `STRENGTHS`, in place of the config's.
      mean: the colour that erased pixels get, per channel.
      num_classes: number of classes.
      flip_key: key of the seed and the purpose, the same in every step, for alternating flips.

    Returns:
      Images, float32 of the same shape, and targets, float32 `[batch, num_classes]`.
    """
    keys = dict(zip(_PURPOSES, jax.random.split(key, len(_PURPOSES)), strict=True))
    if config.resized_crop:
        images = random_resized_crop(keys["crop"], images, config.resized_crop)
    if config.crop_padding:
        images = random_crop(keys["crop"], images, config.crop_padding, config.crop_mode)
    if config.flip == "random":
        images = flip_where(jax.random.bernoulli(keys["flip"], shape=labels.shape), images)
    elif config.flip == "alternating":
        images = flip_where(alternating_coin(flip_key, indices, epoch), images)
    if config.policy == "randaugment":
        layers, magnitude = config.policy_layers, strengths["policy_magnitude"]
        images = policies.randaugment(keys["policy"], images, layers, magnitude, mean)
    elif config.policy == "trivialaugment":
        images = policies.trivialaugment(keys["policy"], images, mean)
    if changes := {name: strengths[name] for name in _COLORS if config[name]}:
        images = color_jitter(keys["jitter"], images, changes)
    if config.cutout:
        images = cutout(keys["cutout"], images, config.cutout, mean)
    if config.erasing:
        scale, ratio = config.erasing_scale, config.erasing_ratio
        probability = strengths["erasing"]
        images = random_erasing(keys["erasing"], images, probability, scale, ratio, mean)
    targets = jax.nn.one_hot(labels, num_classes, dtype=jnp.float32)
    alphas = {name: strengths[name] for name in ("mixup", "cutmix") if config[name]}
    return mix(keys["mix"], images, targets, **alphas) if alphas else (images, targets)


def normalize(images: Array, mean: Floats, std: Floats) -> Array:
    """Returns (images - mean) / std, per channel, float32.

    Args:
      images: `[batch, height, width, channels]` in [0, 1].
      mean: mean of each channel.
      std: deviation of each channel.
    """
    shift, scale = jnp.asarray(mean, jnp.float32), jnp.asarray(std, jnp.float32)
    return (images.astype(jnp.float32) - shift) / scale


def resize(images: Array, size: int) -> Array:
    """Returns images of another size, `[batch, size, size, channels]`, by bilinear interpolation.

    Args:
      images: `[batch, height, width, channels]`.
      size: side of the new images, pixels.
    """
    shape = (images.shape[0], size, size, images.shape[-1])
    if images.shape == shape:
        return images
    return jax.image.resize(images, shape, "bilinear")


def random_crop(key: Array, images: Array, padding: int, mode: str) -> Array:
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
    def crop(image: Array, offset: Array) -> Array:
        return lax.dynamic_slice(image, (offset[0], offset[1], 0), shape)

    return jax.vmap(crop)(padded, offsets)


def random_resized_crop(key: Array, images: Array, smallest: float) -> Array:
    """Cuts a random rectangle out of each image and brings it to the old size, bilinearly.

    Its area is uniform from `smallest` to 1 of the image's, its sides' ratio log-uniform from 3/4
    to 4/3 (Szegedy et al. 2015, "Going Deeper with Convolutions"); a side that would be longer than
    the image's is cut to it.

    Args:
      key: PRNG key.
      images: float32 `[batch, height, width, channels]`.
      smallest: least area, as a share of the image's.
    """
    batch, *shape = images.shape
    keys = jax.random.split(key, 3)
    area = jax.random.uniform(keys[0], (batch, 1), minval=smallest, maxval=1.0)
    spread = jnp.log(4 / 3)
    ratio = jnp.exp(jax.random.uniform(keys[1], (batch, 1), minval=-spread, maxval=spread))
    share = jnp.minimum(jnp.sqrt(area * jnp.concatenate([ratio, 1 / ratio], axis=1)), 1.0)
    start = jax.random.uniform(keys[2], (batch, 2)) * (1 - share)

    def cut(image: Array, share: Array, start: Array) -> Array:
        offset = -start * jnp.array(shape[:2]) / share
        return jax.image.scale_and_translate(
            image, shape, (0, 1), 1 / share, offset, "linear", antialias=False
        )

    return jax.vmap(cut)(images, share, start)


def flip_where(flipped: Array, images: Array) -> Array:
    """Mirrors those images, `[batch, height, width, channels]`, that `flipped` `[batch]` marks."""
    return jnp.where(flipped[:, None, None, None], images[:, :, ::-1], images)


def alternating_coin(key: Array, indices: Array, epoch: Array) -> Array:
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

    def coin(index: Array) -> Array:
        return jax.random.bits(jax.random.fold_in(key, index), dtype=jnp.uint32) % 2

    return (jax.vmap(coin)(indices) + epoch) % 2 == 1


def cutout(key: Array, images: Array, side: int, mean: Floats) -> Array:
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


def color_jitter(key: Array, images: Array, changes: Mapping[str, Scalar]) -> Array:
    """Changes brightness, contrast and saturation by random factors, in this order.

    Args:
      key: PRNG key.
      images: float32 `[batch, height, width, 3]` in [0, 1].
      changes: largest relative change of each property that changes; the factor is uniform in
        1 - it to 1 + it.
    """
    for property_key, name in zip(jax.random.split(key, 3), _COLORS, strict=True):
        if name in changes:
            low, high = 1 - changes[name], 1 + changes[name]
            shape = (len(images), 1, 1, 1)
            factor = jax.random.uniform(property_key, shape, jnp.float32, low, high)
            images = _CHANGES[name](images, factor)
    return images


_CHANGES = {
    "brightness": lambda images, factor: policies.blend(0.0, images, factor),
    "contrast": policies.contrast,
    "saturation": policies.saturate,
}


def random_erasing(
    key: Array, images: Array, probability: Scalar, scale: Floats, ratio: Floats, mean: Floats
) -> Array:
    """Sets a random rectangle inside some images to the mean (Zhong et al. 2020).

    Args:
      key: PRNG key.
      images: float32 `[batch, height, width, channels]`.
      probability: share of the images that lose a rectangle.
      scale: smallest and largest area, as shares of the image's.
      ratio: smallest and largest height over width, log-uniform between.
      mean: the colour of the rectangle, per channel.
    """
    batch, height, width, _ = images.shape
    keys = jax.random.split(key, 5)
    chosen = jax.random.bernoulli(keys[0], probability, (batch,))
    area = jax.random.uniform(keys[1], (batch,), minval=scale[0], maxval=scale[1]) * height * width
    low, high = jnp.log(jnp.asarray(ratio))
    shape = jnp.exp(jax.random.uniform(keys[2], (batch,), minval=low, maxval=high))
    rows = jnp.clip(jnp.round(jnp.sqrt(area * shape)), 1, height).astype(jnp.int32)
    columns = jnp.clip(jnp.round(jnp.sqrt(area / shape)), 1, width).astype(jnp.int32)
    top = jax.random.randint(keys[3], (batch,), 0, height - rows + 1)
    left = jax.random.randint(keys[4], (batch,), 0, width - columns + 1)
    inside = rectangles(top, left, rows, columns, height, width)
    inside &= chosen[:, None, None]
    return jnp.where(inside[..., None], jnp.asarray(mean, images.dtype), images)


def mix(
    key: Array,
    images: Array,
    targets: Array,
    mixup: Scalar | None = None,
    cutmix: Scalar | None = None,
) -> tuple[Array, Array]:
    """Mixes each image and its target with those of the reversed batch, all in one proportion.

    Mixup (Zhang et al. 2018) averages the pixels; cutmix (Yun et al. 2019) pastes a rectangle, and
    its proportion is the area that is really left. With both, a coin chooses one for the batch.

    Args:
      key: PRNG key.
      images: float32 `[batch, height, width, channels]`.
      targets: float32 `[batch, num_classes]`.
      mixup: alpha of mixup's Beta distribution; None: no mixup.
      cutmix: alpha of cutmix's Beta distribution; None: no cutmix.
    """
    key_mixup, key_cutmix, key_coin = jax.random.split(key, 3)
    height, width = images.shape[1:3]
    # The share of every pixel that its own image keeps, [height, width].
    kept = jnp.ones((height, width))
    if mixup is not None:
        kept = kept * symmetric_beta(key_mixup, mixup)
    if cutmix is not None:
        use = jax.random.bernoulli(key_coin, 1.0 if mixup is None else 0.5)
        kept = jnp.where(use, _cutmix_mask(key_cutmix, cutmix, height, width), kept)
    share = kept.mean()
    # Other pairs than these would bring the whole batch to every device.
    images = kept[:, :, None] * images + (1 - kept[:, :, None]) * images[::-1]
    return images, share * targets + (1 - share) * targets[::-1]


def symmetric_beta(key: Array, alpha: Scalar, shape: tuple[int, ...] = ()) -> Array:
    """Draws from Beta(alpha, alpha) without the rejection loop of `jax.random.beta`.

    That loop takes seconds to compile and stalls an accelerator in every step. Here t has Student's
    distribution with 2 alpha degrees of freedom, by the polar method (Bailey 1994), and
    t / sqrt(2 alpha + t^2) is symmetric Beta on [-1, 1].

    Args:
      key: PRNG key.
      alpha: both parameters of the distribution.
      shape: shape of the result, float32.
    """
    key_radius, key_angle = jax.random.split(key)
    radius = jax.random.uniform(key_radius, shape) ** (1 / alpha)
    cosine = jnp.cos(2 * jnp.pi * jax.random.uniform(key_angle, shape))
    length = jnp.sqrt(radius + (1 - radius) * cosine**2)
    return 0.5 + 0.5 * cosine * jnp.sqrt(1 - radius) / jnp.maximum(length, 1e-12)


def rectangles(
    top: Array, left: Array, rows: Array | int, columns: Array | int, height: int, width: int
) -> Array:
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


def _cutmix_mask(key: Array, alpha: Scalar, height: int, width: int) -> Array:
    """Returns 0 in a random rectangle, clipped at the border, and 1 elsewhere."""
    key_share, key_y, key_x = jax.random.split(key, 3)
    side = jnp.sqrt(1 - symmetric_beta(key_share, alpha))
    rows, columns = (side * height).astype(jnp.int32), (side * width).astype(jnp.int32)
    top = jax.random.randint(key_y, (1,), 0, height) - rows // 2
    left = jax.random.randint(key_x, (1,), 0, width) - columns // 2
    return 1.0 - rectangles(top, left, rows, columns, height, width)[0]
