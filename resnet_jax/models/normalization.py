"""Batch normalization with the numerics of PyTorch."""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax


class BatchNorm(nn.Module):
    """Batch normalization (Ioffe and Szegedy, 2015) over all axes but the last.

    A batch is normalised with its biased variance; the running variance is updated with the
    unbiased one, as PyTorch does. Statistics are float32 whatever the inputs are. Under `jit` over
    a sharded mesh they are those of the global batch.

    Params: `scale`, `bias`. Collection `batch_stats`: `mean`, `var`, float32.

    Attributes:
      momentum: share of the running statistics kept at each step (PyTorch's momentum is 1 minus it).
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
        scale = (
            self.param("scale", self.scale_init, features, self.param_dtype)
            if self.use_scale
            else None
        )
        bias = (
            self.param("bias", self.bias_init, features, self.param_dtype)
            if self.use_bias
            else None
        )
        running_mean = self.variable("batch_stats", "mean", jnp.zeros, features, jnp.float32)
        running_var = self.variable("batch_stats", "var", jnp.ones, features, jnp.float32)
        x32 = x.astype(jnp.float32)
        mean, var = running_mean.value, running_var.value
        if train:
            axes = tuple(range(x.ndim - 1))
            count = x.size // x.shape[-1]
            mean = jnp.mean(x32, axes)
            var = jnp.mean(jnp.square(x32 - mean), axes)
            if not self.is_initializing():
                unbiased = var * (count / max(count - 1, 1))
                keep = self.momentum
                running_mean.value = keep * running_mean.value + (1 - keep) * mean
                running_var.value = keep * running_var.value + (1 - keep) * unbiased
        factor = lax.rsqrt(var + self.epsilon)
        if scale is not None:
            factor *= scale
        y = (x32 - mean) * factor
        if bias is not None:
            y += bias
        return y.astype(self.dtype or x.dtype)
