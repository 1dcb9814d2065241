"""The networks of the speed records for CIFAR-10 (Jordan 2024, "94% on CIFAR-10 in 3.29 Seconds").

A whitening layer, three groups of 3x3 convolutions, and a linear layer.
"""

import functools
from collections.abc import Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax.typing import Dtype

from resnet_jax.models import layers
from resnet_jax.models.normalization import BatchNorm


def identity_kernel_init(
    key: jax.Array, shape: Sequence[int], dtype: Dtype = jnp.float32
) -> jax.Array:
    """Initialises a convolution whose first output channels are its input channels.

    So the signal passes unchanged at first; the other filters are PyTorch's default.

    Args:
      key: PRNG key.
      shape: `(height, width, inputs, outputs)`.
      dtype: dtype of the kernel.
    """
    height, width, inputs, outputs = shape
    channels = jnp.arange(min(inputs, outputs))
    kernel = layers.torch_kernel_init(key, shape, dtype).at[..., : len(channels)].set(0)
    return kernel.at[height // 2, width // 2, channels, channels].set(1)


class SpeedrunNet(nn.Module):
    """A whitening layer, groups of convolutions that halve the image, and a linear layer.

    A group is convolution, pool, norm, activation, and convolution, norm, activation for each
    further convolution. The norms have no scale.

    Submodules are named `whitening`, `conv<i>_<j>` and `bn<i>_<j>` (group i, convolution j, from
    1), `head`; what each group returns is sown into the collection "intermediates" as `stage<i>`.

    Attributes:
      num_filters: width of each group.
      num_convs: number of convolutions in each group.
      residual: whether a group's first activation is added before its last one.
      num_classes: number of logits; 0: no head, what it would read is returned.
      whitening_size: side of the patches that are whitened, pixels.
      pool_size: side of the last pool's window, pixels.
      logit_scale: factor on the logits.
      bn_momentum: share of the running statistics kept at each step.
      bn_epsilon: added to the variance before the square root.
      activation: the activation; the records' GELU is the exact one.
      dtype: dtype of the computation; logits are always float32.
      param_dtype: dtype of the parameters.
    """

    num_filters: layers.Sizes
    num_convs: layers.Depth = 2
    residual: bool = False
    num_classes: layers.CountOrNone = 10
    whitening_size: int = 2
    pool_size: int = 3
    logit_scale: float = 1 / 9
    bn_momentum: float = 0.6
    bn_epsilon: float = 1e-12
    activation: layers.Activation = functools.partial(nn.gelu, approximate=False)
    dtype: layers.FloatDtype = jnp.float32
    param_dtype: layers.FloatDtype = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        """Maps images to logits.

        Args:
          x: normalised images, `[batch, height, width, channels]`. Of images larger than 32x32, the
            outputs of the last pool are averaged.
          train: whether to normalise with the batch's statistics.

        Returns:
          Logits, float32 `[batch, num_classes]`.

        Raises:
          UserError: if the images are too small.
        """
        layers.check_images(
            x, self.pool_size * 2 ** len(self.num_filters) + self.whitening_size - 1
        )
        dtypes: dict[str, Any] = {"dtype": self.dtype, "param_dtype": self.param_dtype}
        x = x.astype(self.dtype)
        size = self.whitening_size
        x = layers.Conv(
            2 * size * size * x.shape[-1],  # each principal direction and its negative
            (size, size),
            use_bias=True,
            bias_init=nn.initializers.zeros,
            name="whitening",
            **dtypes,
        )(x)
        x = self.activation(x)
        for stage, filters in enumerate(self.num_filters, start=1):
            x = self.apply_group(x, stage, filters, train=train)
            self.sow("intermediates", f"stage{stage}", x)
        x = layers.max_pool(x, self.pool_size).mean(axis=(1, 2))
        if self.num_classes == 0:
            return x.astype(jnp.float32)
        logits = layers.Dense(self.num_classes, use_bias=False, name="head", **dtypes)(x)
        return self.logit_scale * logits.astype(jnp.float32)

    def apply_group(self, x: jax.Array, stage: int, filters: int, *, train: bool) -> jax.Array:
        """Returns a group's output, `[batch, height // 2, width // 2, filters]`."""
        dtypes: dict[str, Any] = {"dtype": self.dtype, "param_dtype": self.param_dtype}
        first = x
        for index in range(1, self.num_convs + 1):
            x = layers.Conv(
                filters,
                padding=1,
                kernel_init=identity_kernel_init,
                name=f"conv{stage}_{index}",
                **dtypes,
            )(x)
            if index == 1:
                x = layers.max_pool(x, 2)
            x = BatchNorm(
                self.bn_momentum,
                self.bn_epsilon,
                use_scale=False,
                name=f"bn{stage}_{index}",
                **dtypes,
            )(x, train=train)
            if self.residual and 1 < index == self.num_convs:
                x = x + first
            x = self.activation(x)
            first = x if index == 1 else first
        return x
