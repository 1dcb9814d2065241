"""Batch normalization with the numerics of PyTorch."""

import functools
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax


def _sum(x: jax.Array) -> jax.Array:
    """Sums over all axes but the last."""

    # XLA's CPU backend reduces many axes at once slowly, and merges two reductions back into one.
    def in_two_steps(x: jax.Array) -> jax.Array:
        x = x.reshape(x.shape[0], -1, x.shape[-1])
        return lax.optimization_barrier(x.sum(0)).sum(0)

    def at_once(x: jax.Array) -> jax.Array:
        return x.sum(range(x.ndim - 1))

    return lax.platform_dependent(x, cpu=in_two_steps, default=at_once)


@functools.partial(jax.custom_vjp, nondiff_argnums=(3, 4))
def _normalize(
    x: jax.Array, scale: jax.Array, bias: jax.Array, epsilon: float, dtype: Any
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Returns `x` normalised over its batch, in `dtype`, and the mean and biased variance."""
    return _normalize_fwd(x, scale, bias, epsilon, dtype)[0]


def _normalize_fwd(
    x: jax.Array, scale: jax.Array, bias: jax.Array, epsilon: float, dtype: Any
) -> tuple[tuple[jax.Array, jax.Array, jax.Array], tuple[jax.Array, ...]]:
    x32 = x.astype(jnp.float32)
    count = x.size // x.shape[-1]
    mean = _sum(x32) / count
    var = _sum(jnp.square(x32 - mean)) / count
    factor = lax.rsqrt(var + epsilon) * scale.astype(jnp.float32)
    y = (x32 - mean) * factor + bias.astype(jnp.float32)
    return (y.astype(dtype), mean, var), (x, scale, bias, mean, var)


def _normalize_bwd(
    epsilon: float,
    dtype: Any,
    residuals: tuple[jax.Array, ...],
    cotangents: tuple[jax.Array, jax.Array, jax.Array],
) -> tuple[jax.Array, jax.Array, jax.Array]:
    x, scale, bias, mean, var = residuals
    dy, dmean, dvar = cotangents
    dy = dy.astype(jnp.float32)
    count = x.size // x.shape[-1]
    centred = x.astype(jnp.float32) - mean
    rstd = lax.rsqrt(var + epsilon)
    dbias = _sum(dy)
    dscale = _sum(dy * centred) * rstd
    # Three numbers per feature, so that one pass over the two arrays gives dx.
    factor = rstd * scale.astype(jnp.float32)
    slope = (2 * dvar - factor * rstd * dscale) / count
    offset = (dmean - factor * dbias) / count
    dx = factor * dy + slope * centred + offset
    return dx.astype(x.dtype), dscale.astype(scale.dtype), dbias.astype(bias.dtype)


_normalize.defvjp(_normalize_fwd, _normalize_bwd)


class BatchNorm(nn.Module):
    """Batch normalization (Ioffe and Szegedy, 2015) over all axes but the last.

    A batch is normalised with its biased variance; the running variance is updated with the
    unbiased one, as PyTorch does. Statistics are float32 whatever the inputs are. Under `jit` over
    a sharded mesh they are those of the global batch.

    Params: `scale`, `bias`. Collection `batch_stats`: `mean`, `var`, float32.

    Attributes:
      momentum: share of the running statistics kept at each step (1 minus PyTorch's momentum).
      epsilon: added to the variance before the square root.
      use_scale: multiply the normalised values by a learned `scale`.
      use_bias: add a learned `bias`.
      scale_init: initializer of `scale`.
      bias_init: initializer of `bias`.
      dtype: dtype of the output; None keeps that of the input.
      param_dtype: dtype of `scale` and `bias`.
    """

    momentum: float = 0.9
    epsilon: float = 1e-5
    use_scale: bool = True
    use_bias: bool = True
    scale_init: nn.initializers.Initializer = nn.initializers.ones
    bias_init: nn.initializers.Initializer = nn.initializers.zeros
    dtype: Any = None
    param_dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        """Normalises `x`.

        Args:
          x: [..., features], of any float dtype.
          train: use the statistics of the batch and update the running ones, which needs
            `batch_stats` to be mutable; otherwise use the running ones.

        Returns:
          An array of the shape of `x`, in `dtype`.
        """
        features = (x.shape[-1],)
        dtype = self.dtype or x.dtype
        scale, bias = jnp.ones(features), jnp.zeros(features)
        if self.use_scale:
            scale = self.param("scale", self.scale_init, features, self.param_dtype)
        if self.use_bias:
            bias = self.param("bias", self.bias_init, features, self.param_dtype)
        running_mean = self.variable("batch_stats", "mean", jnp.zeros, features, jnp.float32)
        running_var = self.variable("batch_stats", "var", jnp.ones, features, jnp.float32)
        if not train:
            factor = lax.rsqrt(running_var.value + self.epsilon) * scale.astype(jnp.float32)
            y = (x.astype(jnp.float32) - running_mean.value) * factor + bias.astype(jnp.float32)
            return y.astype(dtype)
        y, mean, var = _normalize(x, scale, bias, self.epsilon, dtype)
        if not self.is_initializing():
            count = x.size // x.shape[-1]
            unbiased = var * (count / max(count - 1, 1))
            keep = self.momentum
            running_mean.value = keep * running_mean.value + (1 - keep) * mean
            running_var.value = keep * running_var.value + (1 - keep) * unbiased
        return y
