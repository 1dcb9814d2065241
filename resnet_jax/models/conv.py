"""Convolution whose gradients are fast on the CPU backend too.

XLA lowers a convolution well on a GPU, and its forward pass on a CPU; but on a CPU the gradient of
the kernel, and that of the input of a strided convolution, run several times slower than the
hardware allows. Here they are written as matrix products over patches and as a plain convolution.
"""

import functools
import math
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

Pair = tuple[int, int]
Padding = str | Sequence[Pair]

_NHWC = ("NHWC", "HWIO", "NHWC")

# Patches of one chunk of images stay in the cache between their copy and the matrix product.
_CHUNK_BYTES = 6 * 2**20


def conv_general_dilated(
    lhs: jax.Array,
    rhs: jax.Array,
    window_strides: Sequence[int],
    padding: Padding,
    lhs_dilation: Sequence[int] | None = None,
    rhs_dilation: Sequence[int] | None = None,
    dimension_numbers: Any = None,
    feature_group_count: int = 1,
    batch_group_count: int = 1,
    precision: lax.PrecisionLike = None,
    preferred_element_type: Any = None,
) -> jax.Array:
    """Drop-in for `jax.lax.conv_general_dilated`, with the same arguments and results.

    Two-dimensional float32 convolutions in NHWC with an HWIO kernel, without groups or dilation,
    have gradients of their own when lowered for a CPU, equal to the usual ones up to rounding.
    All others, and other platforms, get XLA's. The choice is made when lowering, so one traced
    function serves every platform.

    The gradients can be differentiated again, in both modes; but forward mode (`jax.jvp`,
    `jax.linearize`) directly on such a convolution raises TypeError, as for any `custom_vjp`.
    """
    usual = functools.partial(
        lax.conv_general_dilated,
        window_strides=window_strides,
        padding=padding,
        lhs_dilation=lhs_dilation,
        rhs_dilation=rhs_dilation,
        dimension_numbers=dimension_numbers,
        feature_group_count=feature_group_count,
        batch_group_count=batch_group_count,
        precision=precision,
        preferred_element_type=preferred_element_type,
    )
    plain = (
        lhs.ndim == rhs.ndim == 4
        and lhs.dtype == rhs.dtype == jnp.float32
        and preferred_element_type in (None, jnp.float32)
        and feature_group_count == batch_group_count == 1
        and math.prod((*(lhs_dilation or ()), *(rhs_dilation or ()))) == 1
        and _is_nhwc(lhs, rhs, dimension_numbers)
    )
    if not plain:
        return usual(lhs, rhs)
    strides = (window_strides[0], window_strides[1])
    pads = _explicit_padding(lhs.shape[1:3], rhs.shape[:2], strides, padding)
    if min(*pads[0], *pads[1]) < 0 or 0 in jax.eval_shape(usual, lhs, rhs).shape:
        return usual(lhs, rhs)
    return _conv(lhs, rhs, strides, pads, precision)


def _is_nhwc(lhs: jax.Array, rhs: jax.Array, dimension_numbers: Any) -> bool:
    def numbers(spec: Any) -> lax.ConvDimensionNumbers:
        return lax.conv_dimension_numbers(lhs.shape, rhs.shape, spec)

    return numbers(dimension_numbers) == numbers(_NHWC)


def _explicit_padding(
    size: Sequence[int], kernel: Sequence[int], strides: Pair, padding: Padding
) -> tuple[Pair, Pair]:
    """Padding before and after the height and the width, in pixels."""
    if isinstance(padding, str):
        padding = lax.padtype_to_pads(size, kernel, strides, padding)
    (top, bottom), (left, right) = padding
    return (int(top), int(bottom)), (int(left), int(right))


def _xla_conv(
    x: jax.Array,
    kernel: jax.Array,
    strides: Pair,
    pads: tuple[Pair, Pair],
    precision: lax.PrecisionLike,
) -> jax.Array:
    return lax.conv_general_dilated(
        x, kernel, strides, pads, dimension_numbers=_NHWC, precision=precision
    )


@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3, 4))
def _conv(
    x: jax.Array,
    kernel: jax.Array,
    strides: Pair,
    pads: tuple[Pair, Pair],
    precision: lax.PrecisionLike,
) -> jax.Array:
    return _xla_conv(x, kernel, strides, pads, precision)


def _conv_fwd(
    x: jax.Array, kernel: jax.Array, *static: Any
) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
    return _xla_conv(x, kernel, *static), (x, kernel)


def _conv_bwd(
    strides: Pair,
    pads: tuple[Pair, Pair],
    precision: lax.PrecisionLike,
    residuals: tuple[jax.Array, jax.Array],
    dy: jax.Array,
) -> tuple[jax.Array, jax.Array]:
    x, kernel = residuals
    static = (strides, pads, precision)

    def xla_input(x: jax.Array, kernel: jax.Array, dy: jax.Array) -> jax.Array:
        return jax.vjp(lambda x: _xla_conv(x, kernel, *static), x)[1](dy)[0]

    def xla_kernel(x: jax.Array, kernel: jax.Array, dy: jax.Array) -> jax.Array:
        return jax.vjp(lambda kernel: _xla_conv(x, kernel, *static), kernel)[1](dy)[0]

    def input_gradient(x: jax.Array, kernel: jax.Array, dy: jax.Array) -> jax.Array:
        return _input_gradient(x.shape, kernel, dy, *static)

    def kernel_gradient(x: jax.Array, kernel: jax.Array, dy: jax.Array) -> jax.Array:
        return _kernel_gradient(x, kernel.shape, dy, *static)

    # The two gradients are switched apart, so that one that nobody needs is dead code.
    if max(strides) > 1:
        dx = lax.platform_dependent(x, kernel, dy, cpu=input_gradient, default=xla_input)
    else:
        dx = xla_input(x, kernel, dy)
    dkernel = lax.platform_dependent(x, kernel, dy, cpu=kernel_gradient, default=xla_kernel)
    return dx, dkernel


_conv.defvjp(_conv_fwd, _conv_bwd)


def _input_gradient(
    shape: Sequence[int],
    kernel: jax.Array,
    dy: jax.Array,
    strides: Pair,
    pads: tuple[Pair, Pair],
    precision: lax.PrecisionLike,
) -> jax.Array:
    """Gradient of the input of a strided convolution, without zeros between the pixels of `dy`.

    Input pixels of equal remainder modulo the stride form one phase; each phase is a convolution
    of `dy` with every stride-th tap of the kernel. All phases are one convolution, with
    stride_h * stride_w * in_features output channels.
    """
    batch, height, width, features = shape
    (stride_h, stride_w), (out_h, out_w) = strides, dy.shape[1:3]
    taps_h, taps_w = (-(-kernel.shape[i] // strides[i]) for i in (0, 1))
    pad_h = (0, taps_h * stride_h - kernel.shape[0])
    pad_w = (0, taps_w * stride_w - kernel.shape[1])
    kernel = jnp.pad(kernel, (pad_h, pad_w, (0, 0), (0, 0)))
    kernel = kernel.reshape(taps_h, stride_h, taps_w, stride_w, features, -1)
    kernel = kernel[::-1, :, ::-1].transpose(0, 2, 5, 1, 3, 4)
    kernel = kernel.reshape(taps_h, taps_w, dy.shape[-1], stride_h * stride_w * features)
    full = ((taps_h - 1, taps_h - 1), (taps_w - 1, taps_w - 1))
    dx = _xla_conv(dy, kernel, (1, 1), full, precision)
    rows, columns = out_h + taps_h - 1, out_w + taps_w - 1
    dx = dx.reshape(batch, rows, columns, stride_h, stride_w, features)
    dx = dx.transpose(0, 1, 3, 2, 4, 5).reshape(
        batch, rows * stride_h, columns * stride_w, features
    )
    # Drop the padding; pixels past the last window have no gradient.
    (top, _), (left, _) = pads
    crop_h = (-top, height + top - rows * stride_h, 0)
    crop_w = (-left, width + left - columns * stride_w, 0)
    return lax.pad(dx, jnp.zeros((), dx.dtype), ((0, 0, 0), crop_h, crop_w, (0, 0, 0)))


def _kernel_gradient(
    x: jax.Array,
    shape: Sequence[int],
    dy: jax.Array,
    strides: Pair,
    pads: tuple[Pair, Pair],
    precision: lax.PrecisionLike,
) -> jax.Array:
    """Gradient of the kernel: a sum over chunks of images of (rows of x)^T @ (shifted dy).

    Writing a column of the kernel as tap * stride_w + phase, the phases are a reshape of `x` and
    the taps are shifts of `dy`; the rows of the kernel are shifts of `x`. So each side is copied
    only a few times and the matrices are less lopsided than those of im2col.
    """
    if shape[0] == shape[1] == 1 and pads == ((0, 0), (0, 0)):
        x, strides = x[:, :: strides[0], :: strides[1]], (1, 1)
    batch, height, width, features = x.shape
    (stride_h, stride_w), (out_h, out_w) = strides, dy.shape[1:3]
    taps = -(-shape[1] // stride_w)
    columns = out_w + taps - 1
    (top, _), (left, _) = pads
    pad_h = (top, stride_h * (out_h - 1) + shape[0] - height - top, 0)
    pad_w = (left, stride_w * columns - width - left, 0)
    zero = jnp.zeros((), x.dtype)
    pixel_x, pixel_dy = shape[0] * stride_w * features, taps * dy.shape[-1]

    def product(x: jax.Array, dy: jax.Array) -> jax.Array:
        x = lax.pad(x, zero, ((0, 0, 0), pad_h, pad_w, (0, 0, 0)))
        x = x.reshape(*x.shape[:2], columns, stride_w * features)
        stop = stride_h * (out_h - 1) + 1
        rows = [x[:, i : i + stop : stride_h] for i in range(shape[0])]
        dy = lax.pad(dy, zero, ((0, 0, 0), (0, 0, 0), (taps - 1, taps - 1, 0), (0, 0, 0)))
        shifts = [dy[:, :, taps - 1 - i :][:, :, :columns] for i in range(taps)]
        x = jnp.concatenate(rows, -1).reshape(-1, pixel_x)
        dy = jnp.concatenate(shifts, -1).reshape(-1, pixel_dy)
        return lax.dot_general(x, dy, (((0,), (0,)), ((), ())), precision=precision)

    chunks = _chunks(batch, batch * out_h * columns * (pixel_x + pixel_dy) * x.dtype.itemsize)
    x = x.reshape(batch // chunks, chunks, *x.shape[1:])
    dy = dy.reshape(batch // chunks, chunks, *dy.shape[1:])

    def add(total: jax.Array, i: jax.Array) -> tuple[jax.Array, None]:
        at = functools.partial(lax.dynamic_index_in_dim, index=i, axis=1, keepdims=False)
        return total + product(at(x), at(dy)), None

    total = jnp.zeros((pixel_x, pixel_dy), x.dtype)
    total, _ = lax.scan(add, total, jnp.arange(chunks))
    total = total.reshape(shape[0], stride_w, features, taps, -1).transpose(0, 3, 1, 2, 4)
    return total.reshape(shape[0], taps * stride_w, features, -1)[:, : shape[1]]


def _chunks(batch: int, nbytes: int) -> int:
    """Smallest number of equal chunks of a batch of `nbytes` that fit in the cache."""
    fits = (n for n in range(1, batch) if batch % n == 0 and nbytes <= n * _CHUNK_BYTES)
    return next(fits, batch)
