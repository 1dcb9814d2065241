"""RandAugment and TrivialAugment: random operations on colour and shape, one per image and layer.

The operations and their ranges are torchvision's, on float images in [0, 1]; shears and rotations
are about the centre, by nearest neighbour. Every image of a batch may have an operation of its own,
so an operation is arithmetic on its number and strength, not a branch.
"""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
from jax import Array

OPERATIONS = (
    *("identity", "shear_x", "shear_y", "translate_x", "translate_y", "rotate"),
    *("brightness", "saturation", "contrast", "sharpness"),
    *("posterize", "solarize", "autocontrast", "equalize"),
)

# Strength of each operation at full magnitude, of RandAugment and TrivialAugment: shear per pixel,
# translation as a share of the side or in pixels, degrees, relative change of a colour property,
# bits removed, share of the range that is inverted.
_FULL = {
    "shear_x": (0.3, 0.99),
    "shear_y": (0.3, 0.99),
    "translate_x": (150 / 331, 32.0),
    "translate_y": (150 / 331, 32.0),
    "rotate": (30.0, 135.0),
    "brightness": (0.9, 0.99),
    "saturation": (0.9, 0.99),
    "contrast": (0.9, 0.99),
    "sharpness": (0.9, 0.99),
    "posterize": (4.0, 6.0),
    "solarize": (1.0, 1.0),
}

_LUMA = (0.2989, 0.587, 0.114)


def randaugment(
    key: Array, images: Array, layers: int, magnitude: Array | float, fill: Sequence[float]
) -> Array:
    """Applies `layers` random operations of one magnitude to each image (Cubuk et al. 2020).

    Args:
      key: PRNG key.
      images: float32 `[batch, height, width, 3]` in [0, 1].
      layers: operations per image.
      magnitude: strength, of 30.
      fill: colour of pixels that come from outside the image.
    """
    for layer_key in jax.random.split(key, layers):
        operation_key, sign_key = jax.random.split(layer_key)
        operation = jax.random.randint(operation_key, images.shape[:1], 0, len(OPERATIONS))
        strength = _strengths(0, *images.shape[1:3])[operation] * magnitude / 30
        images = apply_operations(images, operation, strength, _signs(sign_key, operation), fill)
    return images


def trivialaugment(key: Array, images: Array, fill: Sequence[float]) -> Array:
    """Applies one random operation of random magnitude to each image (Mueller and Hutter 2021).

    Args:
      key: PRNG key.
      images: float32 `[batch, height, width, 3]` in [0, 1].
      fill: colour of pixels that come from outside the image.
    """
    operation_key, magnitude_key, sign_key = jax.random.split(key, 3)
    operation = jax.random.randint(operation_key, images.shape[:1], 0, len(OPERATIONS))
    magnitude = jax.random.randint(magnitude_key, images.shape[:1], 0, 31)
    strength = _strengths(1, *images.shape[1:3])[operation] * magnitude / 30
    return apply_operations(images, operation, strength, _signs(sign_key, operation), fill)


def apply_operations(
    images: Array, operation: Array, strength: Array, sign: Array, fill: Sequence[float]
) -> Array:
    """Applies to each image an operation of its own.

    Args:
      images: float32 `[batch, height, width, 3]` in [0, 1].
      operation: position in `OPERATIONS`, int32 `[batch]`.
      strength: strength in the operation's own unit, float32 `[batch]`.
      sign: 1 or -1, direction of the operations that have one, float32 `[batch]`.
      fill: colour of pixels that come from outside the image.

    Returns:
      float32 `[batch, height, width, 3]` in [0, 1].
    """
    signed = strength * sign
    warped = warp(images, *_inverse_maps(operation, signed), fill)
    images = jnp.where(_is(operation, *OPERATIONS[1:6]), warped, images)
    images = _blended(images, operation, signed[:, None, None, None])
    step = 2.0 ** jnp.round(_amount("posterize", operation, strength)[:, None, None, None])
    posterized = jnp.floor(jnp.round(images * 255) / step) * step / 255
    images = jnp.where(_is(operation, "posterize"), posterized, images)
    inverted = jnp.where(images >= 1 - strength[:, None, None, None], 1 - images, images)
    images = jnp.where(_is(operation, "solarize"), inverted, images)
    images = jnp.where(_is(operation, "autocontrast"), autocontrast(images), images)
    return jnp.where(_is(operation, "equalize"), equalize(images), images)


def warp(images: Array, matrix: Array, shift: Array, fill: Sequence[float]) -> Array:
    """Returns images whose pixel at p is the old pixel nearest to `matrix @ p + shift`.

    Args:
      images: float32 `[batch, height, width, channels]`.
      matrix: float32 `[batch, 2, 2]`, for (y, x) measured from the centre.
      shift: float32 `[batch, 2]`, pixels.
      fill: colour of pixels that come from outside the image.
    """
    batch, height, width, channels = images.shape
    centre = jnp.array([(height - 1) / 2, (width - 1) / 2])
    y, x = jnp.meshgrid(jnp.arange(height), jnp.arange(width), indexing="ij")
    points = jnp.stack([y.ravel(), x.ravel()], axis=-1) - centre
    # Written out, for a matrix product may be of low precision on an accelerator.
    source = (matrix[:, None] * points[:, None, :]).sum(-1) + (shift + centre)[:, None]
    source = jnp.round(source).astype(jnp.int32)
    inside = ((source >= 0) & (source < jnp.array([height, width]))).all(-1)
    index = jnp.where(inside, source[..., 0] * width + source[..., 1], 0)
    pixels = images.reshape(batch, height * width, channels)
    warped = jnp.take_along_axis(pixels, index[..., None], axis=1)
    return jnp.where(inside[..., None], warped, jnp.asarray(fill)).reshape(images.shape)


def autocontrast(images: Array) -> Array:
    """Stretches each channel of each image, `[batch, height, width, channels]`, to [0, 1]."""
    low = images.min(axis=(1, 2), keepdims=True)
    span = images.max(axis=(1, 2), keepdims=True) - low
    return jnp.where(span > 0, (images - low) / jnp.where(span > 0, span, 1), images)


def equalize(images: Array) -> Array:
    """Spreads the 256 values of each channel evenly, by the rule of PIL and torchvision.

    Args:
      images: float32 `[batch, height, width, channels]` in [0, 1].
    """
    batch, height, width, channels = images.shape
    pixels = jnp.round(images * 255).astype(jnp.int32).reshape(batch, height * width, channels)
    row, column = jnp.arange(batch)[:, None, None], jnp.arange(channels)
    counts = jnp.zeros((batch, channels, 256), jnp.int32).at[row, column, pixels].add(1)
    # The last value that occurs does not count: it is white in any case.
    last = jnp.take_along_axis(counts, pixels.max(axis=1)[..., None], axis=2)
    step = (height * width - last) // 255
    below = jnp.cumsum(counts, axis=2) - counts
    table = jnp.clip((below + step // 2) // jnp.maximum(step, 1), 0, 255)
    equal = jnp.take_along_axis(table, pixels.transpose(0, 2, 1), axis=2).transpose(0, 2, 1)
    unchanged = (step == 0).transpose(0, 2, 1)
    return (jnp.where(unchanged, pixels, equal) / 255).reshape(images.shape).astype(jnp.float32)


def saturate(images: Array, factor: Array) -> Array:
    """Moves images, `[batch, height, width, 3]`, from grey (factor 0) to and beyond themselves."""
    return blend(_grey(images), images, factor)


def contrast(images: Array, factor: Array) -> Array:
    """Moves images, `[batch, height, width, 3]`, from their mean grey to and beyond themselves."""
    return blend(_mean_grey(images), images, factor)


def blend(degenerate: Array | float, images: Array, factor: Array) -> Array:
    """Returns degenerate + factor (images - degenerate), clipped to [0, 1]."""
    return jnp.clip(degenerate + factor * (images - degenerate), 0.0, 1.0)


def _strengths(policy: int, height: int, width: int) -> Array:
    """Returns the strength of each operation at full magnitude, of translations in pixels."""
    sides = {"translate_x": width, "translate_y": height} if policy == 0 else {}
    full = [_FULL.get(name, (0.0, 0.0))[policy] * sides.get(name, 1) for name in OPERATIONS]
    return jnp.array(full)


def _signs(key: Array, operation: Array) -> Array:
    return jax.random.rademacher(key, operation.shape, jnp.float32)


def _amount(name: str, operation: Array, strength: Array) -> Array:
    """Returns the strength where the operation is the named one, else 0, `[batch]`."""
    return jnp.where(operation == OPERATIONS.index(name), strength, 0.0)


def _is(operation: Array, *names: str) -> Array:
    """Returns which images have one of the named operations, bool `[batch, 1, 1, 1]`."""
    named = jnp.array([OPERATIONS.index(name) for name in names])
    return (operation[:, None] == named).any(axis=1)[:, None, None, None]


def _grey(images: Array) -> Array:
    return (images * jnp.array(_LUMA)).sum(axis=-1, keepdims=True)


def _mean_grey(images: Array) -> Array:
    return _grey(images).mean(axis=(1, 2), keepdims=True)


def _inverse_maps(operation: Array, strength: Array) -> tuple[Array, Array]:
    """Returns each image's map from new to old pixels, `[batch, 2, 2]` and `[batch, 2]`."""
    shear_y, shear_x, shift_y, shift_x, degrees = (
        _amount(name, operation, strength)
        for name in ("shear_y", "shear_x", "translate_y", "translate_x", "rotate")
    )
    angle = jnp.deg2rad(degrees)
    cosine, sine = jnp.cos(angle), jnp.sin(angle)
    rows = [[cosine, sine + shear_y], [-sine + shear_x, cosine]]
    matrix = jnp.stack([jnp.stack(row, axis=-1) for row in rows], axis=-2)
    return matrix, jnp.stack([shift_y, shift_x], axis=-1)


def _blended(images: Array, operation: Array, change: Array) -> Array:
    """Applies the four operations that move an image from or to a degenerate one."""
    degenerate = jnp.where(_is(operation, "brightness"), 0.0, images)
    degenerate = jnp.where(_is(operation, "saturation"), _grey(images), degenerate)
    degenerate = jnp.where(_is(operation, "contrast"), _mean_grey(images), degenerate)
    degenerate = jnp.where(_is(operation, "sharpness"), _smoothed(images), degenerate)
    # An image whose degenerate is itself stays as it is.
    return blend(degenerate, images, 1 + change)


def _smoothed(images: Array) -> Array:
    """Returns images smoothed by a 3x3 kernel of ones and a 5 in the middle; the border stays."""
    rows = images[:, :-2] + images[:, 1:-1] + images[:, 2:]
    total = rows[:, :, :-2] + rows[:, :, 1:-1] + rows[:, :, 2:]
    inner = (total + 4 * images[:, 1:-1, 1:-1]) / 13
    return images.at[:, 1:-1, 1:-1].set(inner)
