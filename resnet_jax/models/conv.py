"""Convolution that is fast on the CPU backend too, with its gradients.

XLA lowers a convolution well on a GPU, and on a CPU where there are many channels. But on a CPU the
gradient of the kernel runs several times slower than the hardware allows, and so do convolutions
between few channels. Here the one is written as matrix products over patches; the others compute
some neighbouring pixels at once.
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

# Below this many output channels XLA's and our matrix products waste part of each vector register.
_NARROW = 32


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
    and their gradients are computed in ways of our own when lowered for a CPU, equal to the usual
    ones up to rounding. All others, and other platforms, get XLA's. The choice is made when
    lowering, so one traced function serves every platform.

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
    return _platform_conv(x, kernel, strides, pads, precision)


def _platform_conv(
    x: jax.Array,
    kernel: jax.Array,
    strides: Pair,
    pads: tuple[Pair, Pair],
    precision: lax.PrecisionLike,
) -> jax.Array:
    xla = functools.partial(_xla_conv, strides=strides, pads=pads, precision=precision)
    columns = _columns_at_once(x, kernel, strides, pads)
    if columns == 1:
        return xla(x, kernel)
    cpu = functools.partial(_narrow_conv, columns=columns, pads=pads, precision=precision)
    return lax.platform_dependent(x, kernel, cpu=cpu, default=xla)


def _conv_fwd(
    x: jax.Array, kernel: jax.Array, *static: Any
) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
    return _platform_conv(x, kernel, *static), (x, kernel)


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

    def kernel_gradient(x: jax.Array, kernel: jax.Array, dy: jax.Array) -> jax.Array:
        return _kernel_gradient(x, kernel.shape, dy, *static)

    # Without strides it is a convolution of `dy`, which may be narrow in its turn.
    mirrored = tuple(
        (kernel.shape[i] - 1 - pads[i][0], x.shape[i + 1] + pads[i][0] - dy.shape[i + 1])
        for i in (0, 1)
    )
    if strides == (1, 1) and min(*mirrored[0], *mirrored[1]) >= 0:
        flipped = kernel[::-1, ::-1].swapaxes(2, 3)
        dx = _platform_conv(dy, flipped, strides, (mirrored[0], mirrored[1]), precision)
    else:
        dx = xla_input(x, kernel, dy)
    dkernel = lax.platform_dependent(x, kernel, dy, cpu=kernel_gradient, default=xla_kernel)
    return dx, dkernel


_conv.defvjp(_conv_fwd, _conv_bwd)


def _columns_at_once(
    x: jax.Array, kernel: jax.Array, strides: Pair, pads: tuple[Pair, Pair]
) -> int:
    """How many neighbouring pixels of a row to compute as if they were channels of one.

    The numbers are those that were fastest on AVX-512, for kernels of 3x3 pixels.
    """
    inputs, outputs = kernel.shape[2:]
    width = x.shape[2] + sum(pads[1]) - kernel.shape[1] + 1
    if strides != (1, 1) or kernel.shape[1] < 3 or inputs > 16:
        return 1
    wanted = (2 * _NARROW if inputs <= 4 else _NARROW) // outputs
    return math.gcd(wanted, width) if wanted else 1


def _narrow_conv(
    x: jax.Array,
    kernel: jax.Array,
    columns: int,
    pads: tuple[Pair, Pair],
    precision: lax.PrecisionLike,
) -> jax.Array:
    """A convolution without strides whose few output channels would not fill vector registers.

    It is one of stride `columns` along the rows, whose kernel is so many copies of the given one,
    each shifted by a pixel; its output channels are those of `columns` neighbouring pixels.
    """
    shifts = [
        jnp.pad(kernel, ((0, 0), (i, columns - 1 - i), (0, 0), (0, 0))) for i in range(columns)
    ]
    y = _xla_conv(x, jnp.concatenate(shifts, -1), (1, columns), pads, precision)
    return y.reshape(*y.shape[:2], -1, kernel.shape[-1])


def _kernel_gradient(
    x: jax.Array,
    shape: Sequence[int],
    dy: jax.Array,
    strides: Pair,
    pads: tuple[Pair, Pair],
    precision: lax.PrecisionLike,
) -> jax.Array:
    """Gradient of the kernel: a sum over chunks of images of patches of x times dy."""
    if shape[0] == shape[1] == 1 and pads == ((0, 0), (0, 0)):
        x = x[:, :: strides[0], :: strides[1]]
        matrices = x.reshape(-1, shape[2]), dy.reshape(-1, shape[3])
        gradient = lax.dot_general(*matrices, (((0,), (0,)), ((), ())), precision=precision)
        return gradient.reshape(shape)
    batch, pixels = len(x), math.prod(dy.shape[1:3])
    if strides == (1, 1) and shape[3] < _NARROW:
        product = functools.partial(_product_of_rows, shape=shape, pads=pads, precision=precision)
        values = batch * pixels * (shape[0] * shape[2] + shape[1] * shape[3])
    else:
        product = functools.partial(
            _product_of_patches, shape=shape, strides=strides, pads=pads, precision=precision
        )
        values = batch * pixels * (math.prod(shape[:3]) + shape[3])
    chunks = _chunks(batch, values * x.dtype.itemsize)
    x = x.reshape(batch // chunks, chunks, *x.shape[1:])
    dy = dy.reshape(batch // chunks, chunks, *dy.shape[1:])

    def add(total: jax.Array, i: jax.Array) -> tuple[jax.Array, None]:
        at = functools.partial(lax.dynamic_index_in_dim, index=i, axis=1, keepdims=False)
        return total + product(at(x), at(dy)), None

    return lax.scan(add, jnp.zeros(shape, x.dtype), jnp.arange(chunks))[0]


def _product_of_patches(
    x: jax.Array,
    dy: jax.Array,
    shape: Sequence[int],
    strides: Pair,
    pads: tuple[Pair, Pair],
    precision: lax.PrecisionLike,
) -> jax.Array:
    """Gradient of the kernel from some images: (taps and channels of x) @ (pixels of dy).

    With the images innermost each tap is a copy of long runs, and the matrix product finds its
    left side as it wants it.
    """
    (stride_h, stride_w), (rows, columns) = strides, dy.shape[1:3]
    (top, _), (left, _) = pads
    pad_h = (top, stride_h * (rows - 1) + shape[0] - x.shape[1] - top, 0)
    pad_w = (left, stride_w * (columns - 1) + shape[1] - x.shape[2] - left, 0)
    x = x.transpose(3, 1, 2, 0)
    x = lax.pad(x, jnp.zeros((), x.dtype), ((0, 0, 0), pad_h, pad_w, (0, 0, 0)))
    stop_h, stop_w = stride_h * (rows - 1) + 1, stride_w * (columns - 1) + 1
    taps = [
        x[:, i : i + stop_h : stride_h, j : j + stop_w : stride_w]
        for i in range(shape[0])
        for j in range(shape[1])
    ]
    patches = jnp.stack(taps).reshape(math.prod(shape[:3]), -1)
    dy = dy.transpose(1, 2, 0, 3).reshape(-1, shape[3])
    return jnp.matmul(patches, dy, precision=precision).reshape(shape)


def _product_of_rows(
    x: jax.Array,
    dy: jax.Array,
    shape: Sequence[int],
    pads: tuple[Pair, Pair],
    precision: lax.PrecisionLike,
) -> jax.Array:
    """The same without strides: (rows of x)^T @ (columns of dy).

    The rows of the kernel are shifts of `x`, its columns are shifts of `dy`. So each side is copied
    only a few times, and for few channels the matrices are less lopsided than those of patches.
    """
    height, width, inputs, outputs = shape
    rows, columns = dy.shape[1], dy.shape[2] + width - 1
    (top, _), (left, _) = pads
    zero = jnp.zeros((), x.dtype)
    pad_h = (top, rows + height - 1 - x.shape[1] - top, 0)
    pad_w = (left, columns - x.shape[2] - left, 0)
    x = lax.pad(x, zero, ((0, 0, 0), pad_h, pad_w, (0, 0, 0)))
    x = jnp.concatenate([x[:, i : i + rows] for i in range(height)], -1)
    dy = lax.pad(dy, zero, ((0, 0, 0), (0, 0, 0), (width - 1, width - 1, 0), (0, 0, 0)))
    dy = jnp.concatenate([dy[:, :, width - 1 - i :][:, :, :columns] for i in range(width)], -1)
    matrices = x.reshape(-1, height * inputs), dy.reshape(-1, width * outputs)
    total = lax.dot_general(*matrices, (((0,), (0,)), ((), ())), precision=precision)
    return total.reshape(height, inputs, width, outputs).transpose(0, 2, 1, 3)


def _chunks(batch: int, nbytes: int) -> int:
    """Smallest number of equal chunks of a batch of `nbytes` that fit in the cache."""
    fits = (n for n in range(1, batch) if batch % n == 0 and nbytes <= n * _CHUNK_BYTES)
    return next(fits, batch)
