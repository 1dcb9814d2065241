"""Gradients of convolution kernels as matrix products, several times faster than XLA's on a CPU."""

import math
from collections.abc import Sequence

import jax
import jax.numpy as jnp
from jax import lax

# Patches of one chunk of images stay in the cache between their copy and the matrix product.
_CHUNK_BYTES = 6 * 2**20


def kernel_gradient(
    x: jax.Array,
    dy: jax.Array,
    shape: Sequence[int],
    strides: Sequence[int],
    pads: Sequence[Sequence[int]],
) -> jax.Array:
    """Returns the gradient of a kernel, the sum over chunks of images of patches of `x` times `dy`.

    Args:
      x: input of the convolution, `[batch, height, width, inputs]`.
      dy: gradient of its output, `[batch, height', width', outputs]`.
      shape: of the kernel, `[rows, columns, inputs, outputs]`.
      strides: of rows and columns, pixels.
      pads: zeros before and after the rows and the columns, pixels.
    """
    rows, columns = dy.shape[1:3]
    height, width = strides[0] * (rows - 1) + 1, strides[1] * (columns - 1) + 1

    def product(x: jax.Array, dy: jax.Array) -> jax.Array:
        # With the images innermost each tap is a copy of long runs, and the matrix product, (taps
        # and channels of x) @ (pixels of dy), finds its left side as it wants it.
        x = jnp.pad(x.transpose(3, 1, 2, 0), ((0, 0), *pads, (0, 0)))
        taps = [
            x[:, i : i + height : strides[0], j : j + width : strides[1]]
            for i in range(shape[0])
            for j in range(shape[1])
        ]
        patches = jnp.stack(taps).reshape(math.prod(shape[:3]), -1)
        return (patches @ dy.transpose(1, 2, 0, 3).reshape(-1, shape[3])).reshape(shape)

    batch, pixels = len(x), rows * columns
    nbytes = batch * pixels * (math.prod(shape[:3]) + shape[3]) * x.dtype.itemsize
    fits = (n for n in range(1, batch) if batch % n == 0 and nbytes <= n * _CHUNK_BYTES)
    chunks = next(fits, batch)
    x = x.reshape(batch // chunks, chunks, *x.shape[1:])
    dy = dy.reshape(batch // chunks, chunks, *dy.shape[1:])

    def add(total: jax.Array, i: jax.Array) -> tuple[jax.Array, None]:
        image, gradient = (lax.dynamic_index_in_dim(a, i, 1, keepdims=False) for a in (x, dy))
        return total + product(image, gradient), None

    return lax.scan(add, jnp.zeros(shape, x.dtype), jnp.arange(chunks))[0]
