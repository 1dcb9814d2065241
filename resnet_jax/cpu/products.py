"""Large matrix products on a CPU: by oneDNN, as convolutions of a row of pixels with 1x1 kernels.

XLA's own are several times slower if one side is transposed, as in the gradients of a linear layer.
"""

import math
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from resnet_jax.cpu import lowering
from resnet_jax.platform import cpu_features

_LEAST = 2**22  # multiply-adds; a smaller product is done sooner than what surrounds a call


def use() -> None:
    """Makes products of rows with a matrix, and their gradients, calls of oneDNN."""
    lowering.replace(lax.dot_general_p, _choose)


def _choose(
    operands: Sequence[Any], results: Sequence[Any], params: dict[str, Any]
) -> lowering.Function | None:
    """Returns a function that computes a product; None: it is left to XLA."""
    (lhs, rhs), (result,) = operands, results
    (lhs_axes, rhs_axes), (batched, _) = params["dimension_numbers"]
    one_dtype = lhs.dtype == rhs.dtype == result.dtype
    has_dtype = lhs.dtype == jnp.float32
    has_dtype |= lhs.dtype == jnp.bfloat16 and "avx512bw" in cpu_features()  # as oneDNN needs
    if batched or not one_dtype or not has_dtype:
        return None
    if result.size * math.prod(lhs.shape[axis] for axis in lhs_axes) < _LEAST:
        return None
    leading = tuple(range(lhs.ndim - 1))
    if tuple(lhs_axes) == (lhs.ndim - 1,) and rhs.ndim == 2:
        return lambda x, matrix: _rows_times(x, matrix.T if rhs_axes[0] else matrix)
    if leading and lhs.ndim == rhs.ndim and tuple(lhs_axes) == tuple(rhs_axes) == leading:
        return _sum_of_products
    return None


def _rows_times(x: jax.Array, matrix: jax.Array) -> jax.Array:
    """Returns `x @ matrix`, `[..., outputs]`, of `[..., inputs]` and `[inputs, outputs]`."""
    found = _convolve(_pixels(x), matrix[None, None], ("NHWC", "HWIO", "NHWC"))
    return found.reshape(*x.shape[:-1], -1)


def _sum_of_products(x: jax.Array, dy: jax.Array) -> jax.Array:
    """Returns the gradient of the matrix in `x @ matrix`, of `x` and that of the product."""
    return _convolve(_pixels(x), _pixels(dy), ("CHWN", "IHWO", "HWNC"))[0, 0]


def _pixels(x: jax.Array) -> jax.Array:
    """Returns the rows of `[..., features]` as the pixels of one image of one row."""
    return x.reshape(1, 1, -1, x.shape[-1])


def _convolve(lhs: jax.Array, rhs: jax.Array, numbers: tuple[str, str, str]) -> jax.Array:
    return lax.conv_general_dilated(lhs, rhs, (1, 1), "VALID", dimension_numbers=numbers)
